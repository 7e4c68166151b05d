"""The formulas of the papers written out with Python loops over float64 scalars, sharing no code with the library."""

import torch
from torch import Tensor

# name, arguments of make(), the margin and scale the reference uses for them
CASES = [
    ("triplet", {"margin": 0.3}),
    ("triplet_hn", {"margin": 0.3}),
    ("unified", {"margin": 0.15, "scale": 20.0}),
    ("vlc", {"scale": 12.0}),
    ("vlc", {"scale": 12.0, "learn_scale": True}),
]


def unit(vectors: Tensor) -> Tensor:
    return torch.stack([vector / (vector * vector).sum().sqrt() for vector in vectors])


def scores(queries: Tensor, candidates: Tensor) -> Tensor:
    return torch.stack([torch.stack([(q * c).sum() for c in candidates]) for q in queries])


def loss(
    name: str,
    S: Tensor,
    *,
    ids: list[int] | None = None,
    margins: list[float] | None = None,
    margin: float = 0.0,
    scale: float | Tensor = 1.0,
    reduction: str = "mean",
    **_: object,
) -> Tensor:
    count = len(S)
    total = S.new_zeros(())
    for transposed in (False, True):
        for i in range(count):
            d = S[i, i]
            m = margin if margins is None else margins[i]
            negatives = [
                S[j, i] if transposed else S[i, j] for j in range(count) if j != i and (ids is None or ids[j] != ids[i])
            ]
            total = total + _anchor(name, d, negatives, m, scale)
    return total / count if reduction == "mean" else total


def _anchor(name: str, d: Tensor, negatives: list[Tensor], m: float, scale: float | Tensor) -> Tensor:
    if not negatives:
        return d * 0
    if name == "triplet":
        return sum(((m + s - d).clamp(min=0) for s in negatives), d * 0)
    if name == "triplet_hn":
        hardest = max(negatives, key=lambda score: score.item())
        return (m + hardest - d).clamp(min=0)
    if name == "vlc":
        return torch.log(1 + sum(torch.exp(scale * (s - d)) for s in negatives))
    if name == "unified":
        return torch.log(1 + sum(torch.exp(scale * (s - d + m)) for s in negatives)) / scale
    raise AssertionError(name)
