"""The best K gallery items of each query: from one index, or from gallery slices that Ray actors hold."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError
from retrieval_eval.indexes.build import build, search
from retrieval_eval.indexes.probe import Backend, require_faiss
from retrieval_eval.inputs import as_tensor
from retrieval_eval.ray_cluster import cluster, gpu_share, require_cpus, result
from retrieval_eval.sharded.actors import RESTARTS, opened, source
from retrieval_eval.shortlist import FLAT, Shortlist, shortlist

ASKED = 1 << 13  # queries that all actors answer before the next ones are asked


def best(asking: torch.Tensor, answering: torch.Tensor, k: int, *, shards: int | None = None) -> Shortlist:
    """Return the best `k` (at most all) of `answering` [M, D] for each of `asking` [N, D], by FAISS.

    `shards` cuts the gallery into slices, each in a flat index that a Ray actor holds, on a GPU where the cluster has
    some that FAISS can use. UserError where FAISS is missing, or there are more slices than items.
    """
    require_faiss("the engine faiss")
    if shards is None:
        return shortlist(asking, answering, k)
    if not isinstance(shards, int) or not 1 <= shards <= len(answering):
        raise UserError(f"shards={shards!r}: the gallery has {len(answering)} items; accepted: 1 to {len(answering)}")
    import ray

    k = min(k, len(answering))
    edges = [len(answering) * n // shards for n in range(shards + 1)]
    with cluster(shards):
        require_cpus(shards, "shards")
        handles: list[Any] = []
        try:
            gallery = source(answering)
            for first, last in pairwise(edges):
                remote = ray.remote(
                    num_cpus=1, num_gpus=gpu_share(shards), max_restarts=RESTARTS, max_task_retries=RESTARTS
                )(_Slice)
                handles.append(remote.remote(gallery, first, last, k, torch.get_num_threads()))
            where = sorted({result(handle.backend.remote()) for handle in handles})
            answers = list(_answers(handles, asking, k))
        finally:
            for handle in handles:
                ray.kill(handle)
    scores, indices = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return Shortlist(scores, indices, where[0])


class _Slice:
    """Holds rows `first` to `last` of the gallery in an index, in a process of its own."""

    def __init__(self, gallery: Any, first: int, last: int, k: int, threads: int) -> None:
        require_faiss("the engine faiss").omp_set_num_threads(threads)
        self.first, self.k = first, min(k, last - first)
        self.index, self.where = build(as_tensor(opened(gallery))[first:last], FLAT, self.k)

    def backend(self) -> Backend:
        """Return what searches here."""
        return self.where

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and the gallery's own rows, [N, k] each."""
        scores, indices = search(self.index, torch.from_numpy(queries), self.k)
        return scores, indices + self.first


def _answers(handles: list[Any], asking: torch.Tensor, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ask all slices, some queries at a time, and merge what they find: equal scores in the gallery's order."""
    import ray

    for start in range(0, len(asking), ASKED):
        block = ray.put(asking[start : start + ASKED].to("cpu", torch.float32).numpy())
        found = [result(reference) for reference in [handle.search.remote(block) for handle in handles]]
        scores, indices = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        yield np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)
