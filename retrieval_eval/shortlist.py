"""Top-K shortlists by FAISS, on one GPU or several where build and cards allow it, by torch where FAISS is missing.

Both sides are fed in blocks: a memory-mapped matrix is never copied whole, except into an index that lives on GPUs.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from retrieval_eval import inputs
from retrieval_eval.inputs import Matrix, pair_to_rank
from retrieval_eval.tiles import exact_float32

logger = logging.getLogger(__name__)

Backend = Literal["faiss-gpu", "faiss-cpu", "torch"]

CHUNK = 1024  # queries per product when torch makes the shortlist: 4 MB of scores per 1,000 gallery items
GPU_DEEPEST = 2048  # FAISS keeps no more results per query on a GPU
PROBE_SECONDS = 120
# What `_gpu_index` does, in small, on every card.
PROBE = """
import faiss, numpy as np
options = faiss.GpuMultipleClonerOptions()
options.shard = True
index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(64), options)
parts = [index.at(i) for i in range(index.count())] if faiss.get_num_gpus() > 1 else [index]
x = np.eye(64, dtype=np.float32)
for part, rows in zip(parts, np.array_split(x, len(parts))):
    part.add(np.ascontiguousarray(rows))
if len(parts) > 1:
    index.syncWithSubIndexes()
assert (index.search(x, 1)[1][:, 0] == np.arange(64)).all()
"""


@dataclass(frozen=True, eq=False)
class Shortlist:
    """The best K gallery items of each query by dot product, best first; the order within ties is the backend's own."""

    scores: np.ndarray  # [N, K] float32
    indices: np.ndarray  # [N, K] int64
    backend: Backend


@cache
def backend() -> Backend:
    """Return what makes the shortlists here, probed once per process; one logged line says what falls back.

    An unsupported card makes the first GPU search abort the whole process, so a child process tries all of them.
    """
    try:
        import faiss
    except ImportError as error:
        logger.warning("FAISS is not here (%s; extra faiss-cpu or faiss-gpu): torch.topk makes the shortlists", error)
        return "torch"
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return "faiss-cpu"
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=PROBE_SECONDS, check=False)
        failure = "" if probe.returncode == 0 else f"exit code {probe.returncode}"
    except subprocess.TimeoutExpired:
        failure = f"no answer in {PROBE_SECONDS} s"
    if failure:
        cards = faiss.get_num_gpus()
        which = "this GPU" if cards == 1 else f"these {cards} GPUs together (CUDA_VISIBLE_DEVICES chooses among them)"
        logger.warning("FAISS cannot search on %s (%s): searching on the CPU", which, failure)
        return "faiss-cpu"
    return "faiss-gpu"


def shortlist(queries: Matrix, gallery: Matrix, k: int, *, cosine: bool = False) -> Shortlist:
    """Return the best k (at most all) of gallery [M, D] for each query [N, D]; UserError for unfit input.

    Best by inner product, with `cosine` by that of normalised copies. On several GPUs each holds one part of the
    gallery. More than 2,048 per query are searched for on the CPU.
    """
    Q, G = pair_to_rank(queries, gallery, cosine=cosine)
    k = min(k, len(G))
    kind = backend()
    if kind == "faiss-gpu" and k > GPU_DEEPEST:
        logger.warning("FAISS finds at most %d items per query on a GPU: searching for %d on the CPU", GPU_DEEPEST, k)
        kind = "faiss-cpu"
    if kind == "torch":
        return Shortlist(*_by_torch(Q, G, k), kind)
    if kind == "faiss-gpu":
        return Shortlist(*search(_gpu_index(G), Q, k), kind)
    return Shortlist(*_by_faiss(Q, G, k), kind)


def blocks(matrix: torch.Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows of a matrix [rows, D] as bounded float32 blocks for FAISS, with the index of their first."""
    for start, block in inputs.blocks(matrix):
        yield start, np.ascontiguousarray(block.cpu().numpy())


def search(index: Any, queries: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [N, k] and indices [N, k] that a FAISS index finds for `queries` [N, D], fed in blocks."""
    scores, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for start, block in blocks(queries):
        here = slice(start, start + len(block))
        scores[here], indices[here] = index.search(block, k)
    return scores, indices


def _by_faiss(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    # What IndexFlatIP.search does with its copy of the gallery, without the copy.
    import faiss

    scores, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    if gallery.device.type == "cpu" and gallery.dtype == torch.float32 and gallery.is_contiguous():
        whole = gallery.numpy()
        for start, block in blocks(queries):
            here = slice(start, start + len(block))
            scores[here], indices[here] = faiss.knn(block, whole, k, faiss.METRIC_INNER_PRODUCT)
        return scores, indices
    index = faiss.IndexFlatIP(gallery.shape[1])
    for _, block in blocks(gallery):
        index.add(block)
    return search(index, queries, k)


def _gpu_index(gallery: torch.Tensor) -> Any:
    import faiss

    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    # Cloned empty and filled afterwards: no copy of the gallery is made in the host's memory.
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(gallery.shape[1]), options)
    if faiss.get_num_gpus() > 1:
        fill_shards(index, gallery)
    else:
        for _, block in blocks(gallery):
            index.add(block)
    return index


def fill_shards(index: Any, gallery: torch.Tensor) -> None:
    """Fill the empty parts of a FAISS IndexShards, whose ids follow one another, with `gallery` [M, D] in blocks.

    Its own `add` takes everything in one call or not at all: a second block would get the ids of the first.
    """
    parts = [index.at(i) for i in range(index.count())]
    edges = [len(gallery) * i // len(parts) for i in range(len(parts) + 1)]
    for part, first, last in zip(parts, edges, edges[1:], strict=False):
        for _, block in blocks(gallery[first:last]):
            part.add(block)
    index.syncWithSubIndexes()


def _by_torch(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    answering = gallery.to(queries.device, torch.float32)
    with exact_float32(queries.device):
        best = [torch.topk(chunk.float() @ answering.T, k, dim=1) for chunk in queries.split(CHUNK)]
    scores, indices = (torch.cat(parts).cpu().numpy() for parts in zip(*best, strict=True))
    return scores, indices
