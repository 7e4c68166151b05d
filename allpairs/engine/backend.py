"""Which backend computes a loss.

Shapes: bq local queries, Bc candidates of all ranks, D embedding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine import dense, fused, tiled
from allpairs.engine.agreement import Proposal, agree, refuse_difference
from allpairs.engine.batch import LocalBatch
from allpairs.engine.contract import AnchorObjective
from allpairs.engine.exchange import RankLayout
from allpairs.engine.fused.tiles import FusedTiles
from allpairs.engine.global_batch import GlobalBatch
from allpairs.engine.products import HALF
from allpairs.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

BACKENDS = ("auto", "dense", "tiled", "triton")

_LARGEST_DENSE = 1 << 18
"""Scores (bq·Bc) up to which `auto` holds the full matrix: below, tiles save neither time nor memory that counts."""

_TILES = range(2048, 8192)
"""Sizes of fused backward tiles: W of the largest takes 134 MB in half precision."""
_instead: list[tiled.TileSizes] = []
"""What `tiling` has put in the place of what is chosen."""


def keeps_half(backend: str, queries: Tensor, candidates: Tensor) -> bool:
    """Return whether embeddings are compared in the half precision they come in.

    That is by the kernels, and by tiles on a GPU, whose products of half precision are summed in float32. A CPU's
    products of half precision gain nothing: there float32 is kept.
    """
    if queries.dtype != candidates.dtype or queries.dtype not in HALF:
        return False
    return backend == "triton" or (backend in ("auto", "tiled") and queries.is_cuda)


def compute_loss(
    objective: AnchorObjective[Any],
    prepared: Callable[[], LocalBatch],
    group: "dist.ProcessGroup | None",
    backend: str,
    tile: int | None,
) -> Tensor:
    """Return this rank's loss as `dense.loss` defines it, by the backend asked for or the one that fits.

    `prepared` checks this rank's rows and returns them.

    Raises:
        UserError: what `prepared` refuses, an impossible tile, the triton backend where it cannot run, or ranks that
            disagree; of a group, on every rank.
    """

    def checked() -> LocalBatch:
        if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
            raise UserError(f"tile={tile!r} is impossible; accepted: a whole number from 1, or None")
        batch = prepared()
        if backend == "triton":
            _check_triton(objective, batch)
        return batch

    def proposal(batch: LocalBatch) -> Proposal:
        learned = {"the scale": objective.score_scale(), "the bias": objective.score_bias()}
        return Proposal(objective.settings(), learned, BACKENDS.index(_before_sizes(objective, backend, batch)))

    batch, layout, nothing, choices = agree(checked, proposal, group)
    backends = [_by_size(BACKENDS[number], layout) for number in choices]
    backend = backends[0]
    if set(backends) != {backend}:
        refuse_difference("backend", backends)
    if backend == "dense":
        loss = dense.loss(objective, batch, layout)
    else:
        loss = _tiled_loss(objective, batch, layout, backend, tile)
    # Mining compares, and nothing is above or below NaN: without this a broken row could be passed over.
    return loss * (1 + nothing)


def _before_sizes(objective: AnchorObjective[Any], backend: str, batch: LocalBatch) -> str:
    """Return the backend as far as this rank's own rows decide it."""
    if backend == "auto" and batch.queries.is_cuda and batch.queries.dtype in HALF:
        fits = objective.kernel is not None and _kernels_mask(objective, batch)
        return "triton" if fits and fused.usable(batch.queries) else "tiled"
    return backend


def _kernels_mask(objective: AnchorObjective[Any], batch: LocalBatch) -> bool:
    """Return whether one id per item can say what the kernels leave out: of a set, equal texts are a third kind."""
    return batch.texts is None or objective.own_positive


def _by_size(backend: str, layout: RankLayout) -> str:
    if backend != "auto":
        return backend
    # Every rank must choose alike: by the longest part, not by its own.
    return "dense" if max(layout.query_counts) * len(layout.all_candidates) <= _LARGEST_DENSE else "tiled"


def _tiled_loss(
    objective: AnchorObjective[Any], batch: LocalBatch, layout: RankLayout, backend: str, tile: int | None
) -> Tensor:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UserError(f"backend={backend!r} knows no transforms of torch.func; accepted under them: backend='dense'")
    if backend == "triton" and (missing := -batch.queries.shape[1] % 16):
        # The kernels step through D by 16; zeros add nothing to a score.
        to_16 = (0, missing)
        batch = batch._replace(queries=F.pad(batch.queries, to_16), candidates=F.pad(batch.candidates, to_16))
    whole = GlobalBatch.gathered(objective, batch, layout)
    if backend == "triton" and whole.single_ids is None:
        backend = "tiled"  # on every rank: all know all ids
    tiles = FusedTiles if backend == "triton" else tiled.PlainTiles
    sizes = _tile_sizes(backend, batch.queries) if tile is None else tiled.TileSizes(tile, tile)
    return tiled.loss(objective, batch, layout, whole, tile=sizes, tiles=tiles)


def _tile_sizes(backend: str, queries: Tensor) -> tiled.TileSizes:
    """Return the tiles for a device: a fused forward tile stores two numbers per block and anchor, a backward tile W.

    A backward tile is as high as makes its product with the embeddings fill every multiprocessor of a GPU once.
    """
    if _instead:
        return _instead[-1]
    if backend == "triton":
        return tiled.TileSizes(32768, _one_wave(queries))  # 100 MB of partial results in blocks of 256 × 128
    # On a CPU, a tile of float32 is then 1 MiB: it stays in the cache.
    size = 4096 if queries.is_cuda else 512
    return tiled.TileSizes(size, size)


@contextmanager
def tiling(sizes: tiled.TileSizes) -> Iterator[None]:
    """Walk in tiles of `sizes` where a call names none, whatever the device, until the context is left."""
    _instead.append(sizes)
    try:
        yield
    finally:
        _instead.pop()


def _one_wave(queries: Tensor) -> int:
    """Return the rows of W whose product with embeddings has as many blocks of 128 × 256 as there are multiprocessors.

    One block more and the rest of the GPU would wait for it as long again. At D = 768 on an H200 that is 5,632, and W
    in half precision 63 MB. Not measured.
    """
    multiprocessors = 132
    if queries.is_cuda:
        multiprocessors = torch.cuda.get_device_properties(queries.device).multi_processor_count
    across = -(-queries.shape[1] // 256)
    return min(max(multiprocessors // across * 128, _TILES.start), _TILES.stop)


def _check_triton(objective: AnchorObjective[Any], batch: LocalBatch) -> None:
    name, queries = type(objective).__name__, batch.queries
    if objective.kernel is None:
        raise UserError(f"backend='triton': {name} has no fused kernel; accepted for it: auto, dense, tiled")
    if not _kernels_mask(objective, batch):
        raise UserError(f"backend='triton': {name}'s kernel takes no text_ids; accepted with them: auto, dense, tiled")
    if queries.dtype not in fused.DTYPES:
        raise UserError(
            "backend='triton': embeddings of float16, bfloat16 or float32 are accepted, not "
            f"{str(queries.dtype).removeprefix('torch.')}"
        )
    if not fused.usable(queries):
        raise UserError(
            f"backend='triton' needs the package triton and an NVIDIA GPU of compute capability 8 or later; the "
            f"embeddings are on {queries.device}; accepted here: auto, dense, tiled"
        )
