"""Runs a problem's units, here or by Ray actors, keeps what is finished, and puts the counts together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from retrieval_eval.counting import Assembly, Counts, SliceCounts
from retrieval_eval.sharded.problem import Problem, Result, Unit, work
from retrieval_eval.sharded.state import State


class Executor(Protocol):
    """Who does the units of all shards."""

    def run(self, units: Sequence[Unit], scores: np.ndarray | None) -> Iterator[tuple[Unit, Result]]:
        """Do the units, in any order; `scores` [P] of all positives are there for counting."""


class InProcess:
    """All shards in this process, one unit after the other."""

    def __init__(self, problem: Problem, columns: list[range]) -> None:
        self.problem, self.columns = problem, columns

    def run(self, units: Sequence[Unit], scores: np.ndarray | None) -> Iterator[tuple[Unit, Result]]:
        """Do the units shard by shard, so that one shard is held at a time."""
        for number, columns in enumerate(self.columns):
            own = [unit for unit in units if unit.shard == number]
            if not own:
                continue
            shard = self.problem.shard(columns)
            if scores is not None:
                shard.take(scores)
            for unit in own:
                yield unit, work(shard, unit)


@contextmanager
def in_process(problem: Problem, columns: list[range]) -> Iterator[Executor]:
    """The executor of this process alone."""
    yield InProcess(problem, columns)


def count(
    problem: Problem,
    *,
    shards: int | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    executor: Callable[[Problem, list[range]], AbstractContextManager[Executor]] | None = None,
) -> tuple[Counts, ...]:
    """Count both directions of `problem` (the forward one alone where that is asked), every positive exactly.

    `executor` makes who counts the `shards`: this process (`in_process`) if they are None, else Ray actors. Units that
    `state` holds are not done again. `progress` is told the units done and all of them, before the first one and after
    each.
    """
    columns = problem.shard_columns(1 if shards is None else shards)
    if executor is None:
        from retrieval_eval.sharded.actors import actors

        executor = in_process if shards is None else actors
    kept = None if state is None else State.open(Path(state), problem, len(columns))
    layout, blocks = problem.layout, problem.row_blocks()
    every = [
        [
            Unit("scores", number, rows)
            for rows in blocks
            for number, own in enumerate(columns)
            if len(layout.pairs_in(rows, own))
        ],
        [Unit("counts", number, rows) for rows in blocks for number in range(len(columns))],
    ]
    assembly = Assembly(layout, both=problem.both)
    done, total = 0, sum(map(len, every))

    def add(unit: Unit, result: Result) -> None:
        nonlocal done
        if isinstance(result, SliceCounts):
            assembly.add_part(unit.rows, columns[unit.shard], result)
        else:
            assembly.add_scores(unit.rows, columns[unit.shard], result)
        done += 1

    todo: list[list[Unit]] = []
    for units in every:
        todo.append([])
        for unit in units:
            found = None if kept is None else kept.read(unit)
            if found is None:
                todo[-1].append(unit)
            else:
                add(unit, found)
    if progress is not None:
        progress(done, total)
    if any(todo):
        with executor(problem, columns) as workers:
            for units, scores in zip(todo, (None, assembly.scores), strict=True):
                for unit, result in workers.run(units, scores):
                    if kept is not None:
                        kept.write(unit, result)
                    add(unit, result)
                    if progress is not None:
                        progress(done, total)
    return assembly.counts()
