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
from retrieval_eval.searched.lists import best
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
    steps, done = 2 * len(sides), 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    counts: dict[str, Counts] = {}
    known: dict[str, np.ndarray] = {}
    found_by: dict[str, tuple[str, int]] = {}
    for direction, (asking, answering) in sides.items():
        found = best(asking, answering, max(DEPTH, *ks) + 1, shards=shards)
        lists = level(found.indices, found.scores, twins_of(answering))
        placed = place(asking, answering, positives[direction], *lists)
        over = f" over {shards} Ray actors" if shards is not None else ""
        open_ = np.flatnonzero(placed.known < min(max(LEVELS, *ks), len(answering)))
        counts[direction], known[direction] = placed.counts, placed.known
        if len(open_):
            some = _counted(asking, answering, positives[direction], open_, device=device, tile=tile)
            counts[direction] = _with(placed.counts, some, positives[direction], open_)
            known[direction][open_] = len(answering)
        found_by[direction] = f"{found.backend}, flat{over}", len(open_)
        step()
    fields = report_fields(counts, dict(positives), ks, whole=False)
    searched = {}
    for direction, (asking, answering) in sides.items():
        rows = sample(len(asking), len(answering))
        own = positives[direction].take(rows)
        exact = _counted(asking, answering, positives[direction], rows, device=device, tile=tile)
        counted = report_fields({direction: exact}, {direction: own}, ks, whole=False)
        by, ties = found_by[direction]
        searched[direction] = Searched(
            by,
            min(max(DEPTH, *ks), int(known[direction].min())),
            ties,
            rows,
            counted["per_query"][direction],
            _same(fields["ranks"][direction], counted["ranks"][direction], known[direction], rows),
        )
        step()
    return {**fields, "searched": searched}


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
) -> Counts:
    """Count some queries, exactly."""
    chosen = asking if len(rows) == len(asking) else asking[torch.from_numpy(rows).to(asking.device)]
    (found,) = count(Problem(chosen, answering, positives.take(rows), False, device, tile))
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
