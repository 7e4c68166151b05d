"""`search`: the report of a gallery that was searched, for `retrieval_eval.evaluate`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from retrieval_eval.counting import Counts
from retrieval_eval.inputs import normalised
from retrieval_eval.positives import Positives
from retrieval_eval.report import report_fields
from retrieval_eval.searched.agreement import sample
from retrieval_eval.searched.found import Searched
from retrieval_eval.searched.lists import lists
from retrieval_eval.searched.placing import level, place, twins_of
from retrieval_eval.sharded import Problem, count
from retrieval_eval.ties import LEVELS, Ranks

DEPTH = 100  # ranks that are told; one more is searched for, to see a tie that reaches beyond


def search(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    positives: Mapping[str, Positives],
    ks: tuple[int, ...],
    *,
    cosine: bool,
    device: torch.device,
    tile: int | None,
    shards: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Return the fields of a `Report` on checked matrices [N, D] and [M, D], searched in the directions of `positives`.

    UserError where FAISS is missing.
    """
    Q, G = (normalised(queries), normalised(gallery)) if cosine else (queries, gallery)
    forward, *backward = positives
    sides = {forward: (Q, G), **dict.fromkeys(backward, (G, Q))}
    rows = {direction: sample(len(asking), len(answering)) for direction, (asking, answering) in sides.items()}
    told = _Told(progress, sum(len(positives[direction]) + len(rows[direction]) for direction in sides))
    counts: dict[str, Counts] = {}
    known: dict[str, np.ndarray] = {}
    found_by: dict[str, tuple[str, int]] = {}
    with lists(sides, max(DEPTH, *ks) + 1, shards=shards) as best:
        for direction, (asking, answering) in sides.items():
            found = best(direction, told.part(len(asking)))
            placed = place(
                asking, answering, positives[direction], *level(found.indices, found.scores, twins_of(answering))
            )
            counts[direction], known[direction] = placed.counts, placed.known
            ties = np.flatnonzero(placed.known < min(max(LEVELS, *ks), len(answering)))
            if len(ties):
                some = _counted(asking, answering, positives[direction], ties, device=device, tile=tile)
                counts[direction] = _with(placed.counts, some, positives[direction], ties)
                known[direction][ties] = len(answering)
            over = f" over {shards} Ray actors" if shards is not None else ""
            found_by[direction] = f"{found.backend}, flat{over}", len(ties)
    fields = report_fields(counts, dict(positives), ks, whole=False)
    if all(len(rows[direction]) == len(asking) for direction, (asking, _) in sides.items()):
        # One product serves both directions.
        problem, size = Problem(Q, G, positives[forward], bool(backward), device, tile), sum(map(len, rows.values()))
        exact = dict(zip(sides, count(problem, progress=_scaled(told.part(size), size)), strict=True))
    else:
        exact = {
            direction: _counted(
                *both, positives[direction], rows[direction], device=device, tile=tile,
                done=told.part(len(rows[direction])),
            )
            for direction, both in sides.items()
        }  # fmt: skip
    searched = {}
    for direction, some_rows in rows.items():
        own = positives[direction].take(some_rows)
        counted = report_fields({direction: exact[direction]}, {direction: own}, ks, whole=False)
        searched[direction] = Searched(
            found_by[direction][0],
            min(max(DEPTH, *ks), int(known[direction].min())),
            found_by[direction][1],
            some_rows,
            counted["per_query"][direction],
            _same(fields["ranks"][direction], counted["ranks"][direction], known[direction], some_rows),
        )
    return {**fields, "searched": searched}


class _Told:
    """Progress over parts of different kinds, in queries: searched for, then counted."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.before = progress, total, 0

    def part(self, size: int) -> Callable[[int], None]:
        """Return what to tell of the next `size` queries: how many of them are done."""
        before = self.before
        self.before += size

        def done(queries: int) -> None:
            if self.progress is not None:
                self.progress(before + queries, self.total)

        done(0)
        return done


def _scaled(done: Callable[[int], None], queries: int) -> Callable[[int, int], None]:
    return lambda units, total: done(queries * units // total)


def _same(searched: Ranks, counted: Ranks, known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    beyond = searched.greater[rows] >= known[rows]
    return np.where(beyond, counted.greater >= known[rows], searched.expected[rows] == counted.expected)


def _counted(
    asking: torch.Tensor,
    answering: torch.Tensor,
    positives: Positives,
    rows: np.ndarray,
    *,
    device: torch.device,
    tile: int | None,
    done: Callable[[int], None] = lambda queries: None,
) -> Counts:
    """Count some queries, exactly; `done` is told how many of them."""
    chosen = asking if len(rows) == len(asking) else asking[torch.from_numpy(rows).to(asking.device)]
    problem = Problem(chosen, answering, positives.take(rows), False, device, tile)
    (found,) = count(problem, progress=_scaled(done, len(rows)))
    return found


def _with(counts: Counts, some: Counts, positives: Positives, rows: np.ndarray) -> Counts:
    """Put the counts of the queries `rows` into those of all."""
    entries = positives.entries(rows)
    changed = {}
    for name in ("score", "greater", "equal", "equal_positives"):
        values = getattr(counts, name).copy()
        values[entries] = getattr(some, name)
        changed[name] = values
    return replace(counts, **changed)
