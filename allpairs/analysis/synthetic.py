"""Batches as early training sees them: all similarities near 1, by how far they have spread.

Shapes: B pairs, D embedding.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Scenario = Literal["collapsed", "twins"]

NOISE_LEVELS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Length of the noise beside a direction of length 1, widest first."""

DESCRIPTIONS: dict[Scenario, str] = {
    "collapsed": "every embedding near one common direction: all similarities → 1",
    "twins": "pairs in twos, each two near one direction of its own: only the hardest negative's similarity → 1",
}


def collapsed(noise: float, *, size: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return queries and candidates [B, D] around one common direction, float64: an untrained pair of encoders.

    The same seed gives the same directions of noise at every level, so that a curve over levels is smooth.
    """
    generator = torch.Generator().manual_seed(seed)
    common_D = normalize(_noise((dim,), generator), dim=0)
    return _around(common_D, noise, (size, dim), generator), _around(common_D, noise, (size, dim), generator)


def twins(noise: float, *, size: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return queries and candidates [B, D] where pairs 2k and 2k + 1 share a random direction, float64.

    The premise of U §3.3: v_i·t̂_i → 1 and t_i·t̂_i → 1 for the hardest negative t̂_i, while other negatives stay away.
    """
    generator = torch.Generator().manual_seed(seed)
    common_BD = normalize(_noise(((size + 1) // 2, dim), generator), dim=1).repeat_interleave(2, dim=0)[:size]
    return _around(common_BD, noise, (size, dim), generator), _around(common_BD, noise, (size, dim), generator)


GENERATORS: dict[Scenario, Callable[..., tuple[Tensor, Tensor]]] = {"collapsed": collapsed, "twins": twins}


def _around(direction: Tensor, noise: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return normalize(direction + noise * _noise(shape, generator), dim=-1)


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return vectors whose expected squared length is 1."""
    return torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
