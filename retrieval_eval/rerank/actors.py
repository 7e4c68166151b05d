"""Jobs of a scorer over Ray actors: on the cluster of RAY_ADDRESS, one that the caller started, or this machine."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError
from retrieval_eval.ray_cluster import cluster, gpu_share, require_cpus, result
from retrieval_eval.rerank.scoring import Job, Map

AHEAD = 2  # jobs an actor is given at a time: it never waits, and few answers do


def over_actors(workers: int) -> Map:
    """Return a `map` that does jobs in `workers` Ray actors, each with a share of the cluster's GPUs if it has any.

    The scorer travels to each actor once, by pickle; one that builds its model at its first call builds it there.
    """
    if workers < 1:
        raise UserError(f"workers={workers}; accepted: 1 or more")

    def mapped(work: Callable[[Job], np.ndarray], jobs: Iterable[Job]) -> Iterator[np.ndarray]:
        import ray

        with cluster(workers):
            require_cpus(workers, "workers")
            remote = ray.remote(num_cpus=1, num_gpus=gpu_share(workers))(_Worker)
            shared = ray.put(work)
            handles: list[Any] = [remote.remote(shared, torch.get_num_threads()) for _ in range(workers)]
            try:
                yield from _in_order(handles, iter(jobs))
            finally:
                for handle in handles:
                    ray.kill(handle)

    return mapped


class _Worker:
    """Holds the scorer in a process of its own."""

    def __init__(self, work: Callable[[Job], np.ndarray], threads: int) -> None:
        torch.set_num_threads(threads)  # as the driver: a product's bits may depend on it
        self.work = work

    def run(self, queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Do one job."""
        return self.work((queries, items))


def _in_order(handles: list[Any], jobs: Iterator[Job]) -> Iterator[np.ndarray]:
    running: deque[tuple[Any, Any]] = deque()

    def give(handle: Any) -> None:
        job = next(jobs, None)
        if job is not None:
            running.append((handle, handle.run.remote(*job)))

    for handle in handles * AHEAD:
        give(handle)
    while running:
        handle, reference = running.popleft()
        values = result(reference)
        give(handle)
        yield values
