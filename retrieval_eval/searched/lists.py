"""The best K gallery items of each query: from one index, or from gallery slices that Ray actors hold."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

Sides = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Per direction the queries [N, D] and the gallery [M, D]."""
Done = Callable[[int], None]
"""Told how many queries of a direction are answered."""


@contextmanager
def lists(sides: Sides, k: int, *, shards: int | None = None) -> Iterator[Callable[[str, Done], Shortlist]]:
    """Give a function that returns a direction's best `k` (at most all) gallery items per query, by FAISS.

    `shards` cuts the galleries into slices, each in a flat index that a Ray actor holds, on a GPU where the cluster has
    some that FAISS can use; an actor holds its slice of one direction's gallery at a time. UserError where FAISS is
    missing, or a gallery has fewer items than there are slices.
    """
    require_faiss("the engine faiss")
    if shards is None:
        yield lambda direction, done: shortlist(*sides[direction], k, done=done)
        return
    least = min(len(answering) for _, answering in sides.values())
    if not isinstance(shards, int) or not 1 <= shards <= least:
        raise UserError(f"shards={shards!r}: the smaller gallery has {least} items; accepted: 1 to {least}")
    import ray

    order = list(sides)
    with cluster(shards):
        require_cpus(shards, "shards")
        handles: list[Any] = []
        try:
            galleries = [source(answering) for _, answering in sides.values()]
            needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpu_share(shards)}
            remote = ray.remote(**needs, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Slice)
            for part in range(shards):
                handles.append(remote.remote(part, shards, k, torch.get_num_threads(), *galleries))
            yield lambda direction, done: _ask(handles, order.index(direction), sides[direction][0], k, done)
        finally:
            for handle in handles:
                ray.kill(handle)


class _Slice:
    """Holds part number `part` of `parts` of a gallery in an index, in a process of its own."""

    def __init__(self, part: int, parts: int, k: int, threads: int, *galleries: Any) -> None:
        require_faiss("the engine faiss").omp_set_num_threads(threads)
        self.part, self.parts, self.k = part, parts, k
        self.galleries = [as_tensor(opened(given)) for given in galleries]
        self.held: tuple[int, int, Any, Backend] | None = None

    def search(self, number: int, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, Backend]:
        """Return scores and rows of gallery `number`, [N, k] each, and what searched; the first call builds the index.

        An actor that died and was started anew builds it again.
        """
        if self.held is None or self.held[0] != number:
            self.held = None  # its memory is free before the next one is built
            gallery = self.galleries[number]
            first, last = (len(gallery) * edge // self.parts for edge in (self.part, self.part + 1))
            self.held = (number, first, *build(gallery[first:last], FLAT, min(self.k, last - first)))
        _, first, index, where = self.held
        scores, indices = search(index, torch.from_numpy(queries), min(self.k, index.ntotal))
        return scores, indices + first, where


def _ask(handles: list[Any], number: int, asking: torch.Tensor, k: int, done: Done) -> Shortlist:
    """Ask all slices, some queries at a time, and merge what they find: equal scores in the gallery's order."""
    import ray

    merged: list[tuple[np.ndarray, np.ndarray]] = []
    backends: set[Backend] = set()
    for start in range(0, len(asking), ASKED):
        block = ray.put(asking[start : start + ASKED].to("cpu", torch.float32).numpy())
        found = [result(each) for each in [handle.search.remote(number, block) for handle in handles]]
        scores, indices = (np.concatenate([each[place] for each in found], axis=1) for place in (0, 1))
        backends |= {where for *_, where in found}
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        done(min(start + ASKED, len(asking)))
        merged.append((np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)))
    scores, indices = (np.concatenate(parts) for parts in zip(*merged, strict=True))
    # Where cards differ, the slower kind is named.
    return Shortlist(scores, indices, min(backends))
