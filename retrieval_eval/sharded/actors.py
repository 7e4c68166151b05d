"""One Ray actor per shard: on the cluster of RAY_ADDRESS, on one that the caller started, or on this machine."""

import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError
from retrieval_eval.inputs import Matrix
from retrieval_eval.positives import Positives
from retrieval_eval.ray_cluster import cluster, gpu_share, require_cpus, result
from retrieval_eval.sharded.problem import Problem, Result, Unit, work

AHEAD = 2  # units an actor is given at a time: it never waits, and few results do
RESTARTS = 3  # of an actor that died; units have no memory, so they are simply done again


@dataclass(frozen=True)
class MappedFile:
    """A matrix in a file that every actor maps for itself: nothing of it travels."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, values: Matrix) -> "MappedFile | None":
        """Find the file behind an array, a view of rows included; None if it has none or is not contiguous."""
        root: Any = values
        while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
            root = root.base
        if not isinstance(values, np.ndarray) or not isinstance(root, np.memmap) or not values.flags.c_contiguous:
            return None
        if root.filename is None:
            return None
        ahead = values.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        return cls(str(Path(root.filename).resolve()), values.dtype.str, values.shape, root.offset + ahead)

    def open(self) -> np.memmap:
        """Map the file; UserError where it cannot be seen."""
        if not Path(self.path).is_file():
            raise UserError(f"{self.path} is not there on {os.uname().nodename}: a sharded gallery needs a shared disk")
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


class _Actor:
    """Holds a shard in a process of its own."""

    def __init__(self, queries: Any, gallery: Any, facts: dict[str, Any], columns: range, threads: int) -> None:
        torch.set_num_threads(threads)  # as the driver: a product's bits may depend on it
        Q, G = opened(queries), opened(gallery)
        self.shard = Problem(Q, G, **facts).shard(columns)
        self.taken = False

    def run(self, unit: Unit, scores: np.ndarray | None) -> Result:
        """Do a unit; the first one that counts takes the scores."""
        if unit.kind == "counts" and not self.taken:
            assert scores is not None
            self.shard.take(scores)
            self.taken = True
        return work(self.shard, unit)


class RayActors:
    """The executor of all shards' actors."""

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles

    def run(self, units: Sequence[Unit], scores: np.ndarray | None) -> Iterator[tuple[Unit, Result]]:
        """Do the units, every actor its own in order, and yield them as they finish."""
        import ray

        shared = ray.put(scores)
        waiting = [deque(unit for unit in units if unit.shard == shard) for shard in range(len(self.handles))]
        running: dict[Any, Unit] = {}

        def give(shard: int) -> None:
            if waiting[shard]:
                unit = waiting[shard].popleft()
                running[self.handles[shard].run.remote(unit, shared)] = unit

        for shard in range(len(self.handles)):
            for _ in range(AHEAD):
                give(shard)
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(ready[0])
            give(unit.shard)
            yield unit, result(ready[0])


@contextmanager
def actors(problem: Problem, columns: list[range]) -> Iterator[RayActors]:
    """Start an actor per range of columns, and end them all; UserError if the cluster has no room for them."""
    import ray

    with cluster(len(columns)):
        require_cpus(len(columns), "shards")
        needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0}
        if problem.device.type == "cuda":
            needs["num_gpus"] = gpu_share(len(columns))
            if not needs["num_gpus"]:
                raise UserError("device=cuda: this Ray cluster has no GPU; accepted: cpu")
        handles: list[Any] = []
        try:
            facts = {
                "positives": Positives(problem.positives.offsets, problem.positives.indices, problem.positives.gallery),
                "both": problem.both,
                "device": problem.device if problem.device.type == "cpu" else torch.device(problem.device.type),
                "tile": problem.tile,
                "cosine": problem.cosine,
            }
            sources = [source(values) for values in (problem.queries, problem.gallery)]
            shared = ray.put(facts)
            for own in columns:
                remote = ray.remote(**needs, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Actor)
                handles.append(remote.remote(*sources, shared, own, torch.get_num_threads()))
            yield RayActors(handles)
        finally:
            for handle in handles:
                ray.kill(handle)


def source(values: Matrix) -> Any:
    """Return what an actor opens the matrix from: a file, or a reference to the array that all of them share."""
    import ray

    mapped = MappedFile.of(values)
    if mapped is not None:
        return mapped
    if isinstance(values, torch.Tensor):
        X = values.detach().cpu()
        values = (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # numpy has no bfloat16
    return ray.put(np.asarray(values))


def opened(given: Any) -> Matrix:
    """Return the matrix that `source` stands for, in an actor, where Ray has put the array in place of a reference."""
    matrix: Matrix = given.open() if isinstance(given, MappedFile) else given
    return matrix
