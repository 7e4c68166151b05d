"""Top-K shortlists by FAISS, on one GPU or several where build and cards allow it, by torch where FAISS is missing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from retrieval_eval.indexes.build import blocks, build, search
from retrieval_eval.indexes.parameters import IndexParameters
from retrieval_eval.indexes.probe import Backend, backend
from retrieval_eval.inputs import Matrix, pair_to_rank
from retrieval_eval.tiles import exact_float32

FLAT = IndexParameters("flat")
CHUNK = 1024  # queries per product when torch makes the shortlist: 4 MB of scores per 1,000 gallery items


@dataclass(frozen=True, eq=False)
class Shortlist:
    """The best K gallery items of each query by dot product, best first; the order within ties is the backend's own."""

    scores: np.ndarray  # [N, K] float32
    indices: np.ndarray  # [N, K] int64
    backend: Backend


def shortlist(
    queries: Matrix,
    gallery: Matrix,
    k: int,
    *,
    cosine: bool = False,
    done: Callable[[int], None] = lambda queries: None,
) -> Shortlist:
    """Return the best k (at most all) of gallery [M, D] for each query [N, D]; UserError for unfit input.

    Best by inner product, with `cosine` by that of normalised copies. On several GPUs each holds one part of the
    gallery. More than 2,048 per query are searched for on the CPU. FAISS tells `done` how many queries are answered.
    """
    Q, G = pair_to_rank(queries, gallery, cosine=cosine)
    k = min(k, len(G))
    if backend() == "torch":
        return Shortlist(*_by_torch(Q, G, k), "torch")
    if backend() == "faiss-cpu" and G.device.type == "cpu" and G.dtype == torch.float32 and G.is_contiguous():
        return Shortlist(*_in_place(Q, G.numpy(), k, done), "faiss-cpu")
    index, where = build(G, FLAT, k)
    return Shortlist(*search(index, Q, k, done), where)


def _in_place(
    queries: torch.Tensor, gallery: np.ndarray, k: int, done: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    # What a flat index does with its copy of the gallery, without the copy.
    import faiss

    scores, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for start, block in blocks(queries):
        here = slice(start, start + len(block))
        scores[here], indices[here] = faiss.knn(block, gallery, k, faiss.METRIC_INNER_PRODUCT)
        done(here.stop)
    return scores, indices


def _by_torch(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    answering = gallery.to(queries.device, torch.float32)
    with exact_float32(queries.device):
        best = [torch.topk(chunk.float() @ answering.T, k, dim=1) for chunk in queries.split(CHUNK)]
    scores, indices = (torch.cat(parts).cpu().numpy() for parts in zip(*best, strict=True))
    return scores, indices
