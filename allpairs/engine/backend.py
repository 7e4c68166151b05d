"""Which backend computes a loss.

Shapes: bq local queries, Bc candidates of all ranks, D embedding.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allpairs.engine import dense, fused, tiled
from allpairs.engine.batch import LocalBatch
from allpairs.engine.contract import AnchorObjective
from allpairs.engine.exchange import agree
from allpairs.engine.fused.tiles import FusedTiles
from allpairs.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

BACKENDS = ("auto", "dense", "tiled", "triton")

_LARGEST_DENSE = 1 << 18
"""Scores (bq·Bc) up to which `auto` holds the full matrix: below, tiles save neither time nor memory that counts."""
_HALF = (torch.float16, torch.bfloat16)


def keeps_half(objective: AnchorObjective[Any], backend: str, queries: Tensor, candidates: Tensor) -> bool:
    """Return whether embeddings are compared in the half precision they come in."""
    if queries.dtype != candidates.dtype or queries.dtype not in _HALF:
        return False
    return backend == "triton" or (backend == "auto" and _has_kernels(objective, queries))


def compute_loss(
    objective: AnchorObjective[Any],
    batch: LocalBatch,
    group: "dist.ProcessGroup | None",
    backend: str,
    tile: int | None,
) -> Tensor:
    """Return this rank's loss as `dense.loss` defines it, by the backend asked for or the one that fits.

    Raises:
        UserError: an impossible tile, or the triton backend where it cannot run.
    """
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
        raise UserError(f"tile={tile!r} is impossible; accepted: a whole number from 1, or None")
    if backend == "triton":
        _check_triton(objective, batch.queries)
    layout = agree(batch, group)
    if backend == "auto":
        if batch.queries.is_cuda and _has_kernels(objective, batch.queries):
            backend = "triton"
        else:
            # Every rank must choose alike: by the longest part, not by its own.
            scores = max(layout.query_counts) * len(layout.all_candidates)
            backend = "dense" if scores <= _LARGEST_DENSE else "tiled"
    if backend == "dense":
        return dense.loss(objective, batch, layout)
    tiles = FusedTiles if backend == "triton" else tiled.PlainTiles
    return tiled.loss(objective, batch, layout, tile or _tile_size(backend, batch.queries), tiles)


def _tile_size(backend: str, queries: Tensor) -> int:
    if backend == "triton":
        return 8192  # W of a tile in half precision is then 128 MiB, and its products large enough to fill a GPU
    return 4096 if queries.is_cuda else 512  # on a CPU, a tile of float32 is 1 MiB: it stays in the cache


def _has_kernels(objective: AnchorObjective[Any], queries: Tensor) -> bool:
    fits = objective.kernel is not None and queries.shape[1] % 16 == 0 and queries.dtype in _HALF
    return fits and fused.usable(queries)


def _check_triton(objective: AnchorObjective[Any], queries: Tensor) -> None:
    name = type(objective).__name__
    if objective.kernel is None:
        raise UserError(f"backend='triton': {name} has no fused kernel; accepted for it: auto, dense, tiled")
    if queries.shape[1] % 16 or queries.dtype not in (*_HALF, torch.float32):
        raise UserError(
            "backend='triton': embeddings of float16, bfloat16 or float32 whose size is a multiple of 16 are accepted, "
            f"not {str(queries.dtype).removeprefix('torch.')} {list(queries.shape)}"
        )
    if not fused.usable(queries):
        raise UserError(
            f"backend='triton' needs the package triton and an NVIDIA GPU of compute capability 8 or later; the "
            f"embeddings are on {queries.device}; accepted here: auto, dense, tiled"
        )
