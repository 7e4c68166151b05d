"""Which backend computes a loss.

Shapes: bq local queries, Bc candidates of all ranks, D embedding.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allpairs.engine import dense, tiled
from allpairs.engine.anchors import AnchorObjective
from allpairs.engine.exchange import agree
from allpairs.engine.pairs import Share
from allpairs.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

BACKENDS = ("auto", "dense", "tiled", "triton")

_LARGEST_DENSE = 1 << 20
"""Scores (bq·Bc) up to which `auto` holds the full matrix: tiles save nothing below."""
_PLAIN_TILE = 1024
_FUSED_TILE = 8192


def keeps_half(backend: str, queries: Tensor, candidates: Tensor) -> bool:
    """Return whether embeddings of half precision are compared in it."""
    if queries.dtype != candidates.dtype or queries.dtype not in (torch.float16, torch.bfloat16):
        return False
    return backend == "triton" or (backend == "auto" and queries.is_cuda)


def compute_loss(
    objective: AnchorObjective[Any], share: Share, group: "dist.ProcessGroup | None", backend: str, tile: int | None
) -> Tensor:
    """Return this rank's loss as `dense.loss` defines it, by the backend asked for or the one that fits."""
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
        raise UserError(f"tile={tile!r} is impossible; accepted: a whole number from 1, or None")
    layout = agree(share, group)
    if backend == "auto":
        # Every rank must choose alike: by the longest share, not by its own.
        scores = max(layout.query_counts) * len(layout.all_candidates)
        if share.queries.dtype in (torch.float16, torch.bfloat16):
            backend = "triton"
        else:
            backend = "dense" if scores <= _LARGEST_DENSE else "tiled"
    if backend == "dense":
        return dense.loss(objective, share, layout)
    if backend == "tiled":
        return tiled.loss(objective, share, layout, tile or _PLAIN_TILE, tiled.PlainTiles)
    raise NotImplementedError
