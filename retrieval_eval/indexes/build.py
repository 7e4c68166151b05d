"""A FAISS index of a gallery, on GPUs where there are any, and what it finds.

Both sides are fed in blocks: a memory-mapped matrix is never copied whole, except into the index.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from retrieval_eval.indexes.parameters import (
    BUILD_WIDTH,
    NEIGHBOURS,
    SEARCH_WIDTH,
    SEED,
    SUBVECTOR,
    IndexParameters,
    width_of_codes,
)
from retrieval_eval.indexes.probe import Backend, backend, require_faiss
from retrieval_eval.inputs import blocks as float_blocks

logger = logging.getLogger(__name__)

TRAINED_ON = 64  # training points per centroid, where there are that many
GPU_DEEPEST = 2048  # FAISS keeps no more results per query on a GPU
ON_GPUS = ("flat", "ivf", "ivfpq")  # what FAISS can search there


def build(gallery: torch.Tensor, chosen: IndexParameters, k: int) -> tuple[Any, Backend]:
    """Return a FAISS index of `gallery` [M, D] for inner products, to find the best `k`, and where it searches.

    It is trained on a seeded sample, on the CPU, and filled in blocks. Of several GPUs each holds one part. It stays on
    the CPU, with a logged line, for more than 2,048 items per query, for the kinds that FAISS searches nowhere else
    (``hnsw``, ``pq``), and where a GPU refuses it.

    The same index each time, but for ``hnsw`` where several threads insert: then the graph depends on their timing.
    UserError where FAISS is missing.
    """
    faiss = require_faiss(f"the index {chosen.kind}")
    index = _empty(faiss, chosen, gallery.shape[1])
    if not index.is_trained:
        index.train(_padded(_sample(gallery, TRAINED_ON * max(chosen.lists, 2**chosen.bits)), index.d))
    if backend() == "faiss-gpu" and _fits_gpus(chosen.kind, k):
        try:
            moved = on_gpus(faiss, index)
            fill(moved, gallery)
        except RuntimeError as error:  # too little memory, or codes of a size that has no kernel
            reason = " ".join(str(error).split())[-160:]
            logger.warning("a GPU takes no index %s of this gallery (%s): searching on the CPU", chosen.kind, reason)
        else:
            return moved, "faiss-gpu"
    fill(index, gallery)
    return index, "faiss-cpu"


def search(
    index: Any, queries: torch.Tensor, k: int, done: Callable[[int], None] = lambda queries: None
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [N, k] and indices [N, k] that a FAISS index finds for `queries` [N, D], best first, fed in blocks.

    An index that finds no more than some leaves -1 in the places behind them. `done` is told after each block how many
    queries are answered.
    """
    scores, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for start, block in blocks(queries):
        here = slice(start, start + len(block))
        scores[here], indices[here] = index.search(_padded(block, index.d), k)
        done(here.stop)
    return scores, indices


def blocks(matrix: torch.Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows of a matrix [rows, D] as bounded float32 blocks for FAISS, with the index of their first."""
    for start, block in float_blocks(matrix):
        yield start, np.ascontiguousarray(block.cpu().numpy())


def fill(index: Any, gallery: torch.Tensor) -> None:
    """Add `gallery` [M, D] in blocks to an empty index, or to the parts that several GPUs hold."""
    # Parts whose ids follow one another take everything in one call or not at all: a second block would get the ids of
    # the first. (Clusters keep the ids they are told: their parts take any number of blocks.)
    if not getattr(index, "successive_ids", False):
        for _, block in blocks(gallery):
            index.add(_padded(block, index.d))
        return
    parts = [index.at(i) for i in range(index.count())]
    edges = [len(gallery) * i // len(parts) for i in range(len(parts) + 1)]
    for part, first, last in zip(parts, edges, edges[1:], strict=False):
        for _, block in blocks(gallery[first:last]):
            part.add(_padded(block, part.d))
    index.syncWithSubIndexes()


def on_gpus(faiss: Any, index: Any) -> Any:
    """Return an empty index moved to all GPUs, a part of it on each: no copy of a gallery is made in the host."""
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, options)


def _fits_gpus(kind: str, k: int) -> bool:
    if kind not in ON_GPUS:
        logger.warning("FAISS has no %s on a GPU: searching on the CPU", kind)
    elif k > GPU_DEEPEST:
        logger.warning("FAISS finds at most %d items per query on a GPU: searching for %d on the CPU", GPU_DEEPEST, k)
    else:
        return True
    return False


def _empty(faiss: Any, chosen: IndexParameters, width: int) -> Any:
    if chosen.kind == "flat":
        return faiss.IndexFlatIP(width)
    if chosen.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = BUILD_WIDTH, SEARCH_WIDTH
        return graph
    # np: codes in any order. Sorting them for polysemous filters, which are not used, takes longer than all else.
    codes = f"PQ{width_of_codes(width) // SUBVECTOR}x{chosen.bits}np"
    parts = {"ivf": (f"IVF{chosen.lists}", "Flat"), "pq": (codes,), "ivfpq": (f"IVF{chosen.lists}", codes)}
    width = width_of_codes(width) if chosen.bits else width
    index = faiss.index_factory(width, ",".join(parts[chosen.kind]), faiss.METRIC_INNER_PRODUCT)
    if chosen.lists:
        index.cp.seed, index.nprobe = SEED, chosen.probes
    if chosen.bits:
        index.pq.cp.seed = SEED
    return index


def _padded(block: np.ndarray, width: int) -> np.ndarray:
    return block if block.shape[1] == width else np.pad(block, ((0, 0), (0, width - block.shape[1])))


def _sample(gallery: torch.Tensor, size: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.choice(len(gallery), min(size, len(gallery)), replace=False))
    return gallery[torch.from_numpy(rows).to(gallery.device)].to("cpu", torch.float32).contiguous().numpy()
