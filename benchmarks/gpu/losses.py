"""Objectives and inputs that are timed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from allpairs.objectives import make, names

SCALE = 100.0
Loss = Callable[[Tensor, Tensor], Tensor]


def vectors(batch: int, dim: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return matched pairs of unit rows, as far along in training as a cosine of about 0.45 is; both want gradients."""
    generator = torch.Generator(device).manual_seed(0)
    queries, noise = (F.normalize(torch.randn(batch, dim, device=device, generator=generator), dim=1) for _ in range(2))
    candidates = F.normalize(queries + 2 * noise, dim=1)
    return queries.to(dtype).requires_grad_(), candidates.to(dtype).requires_grad_()


def step(loss: Loss, sides: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """Return what takes one loss forward and backward."""

    def call() -> None:
        for side in sides:
            side.grad = None
        loss(*sides).backward()

    return call


def ours(name: str, backend: str = "auto", **arguments: Any) -> Loss:
    """Return an objective on one backend."""
    objective = make(name, **arguments)
    return lambda queries, candidates: objective(queries, candidates, backend=backend)


def every_objective() -> dict[str, Loss]:
    """Return all of them with their defaults, vlc at the scale of the comparisons."""
    return {name: ours(name, **({"scale": SCALE} if name == "vlc" else {})) for name in names()}


def softmax_work(batch: int, dim: int) -> float:
    """Return the least operations of a softmax over both directions: scores, scores again, and two gradients."""
    return 8.0 * batch**2 * dim
