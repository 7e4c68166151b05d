"""Asking a scorer: in jobs of one size whoever does them, with answers in the order of the jobs, all of them checked.

A scorer is called with rows of the queries and of the gallery, int64 arrays, and looks their features up itself. In the
form ``pairs`` both have P entries and it returns P scores; in the form ``tiles`` they have q and g, and it returns the
scores [q, g] of all their pairs. Jobs depend on the input alone, never on the workers: a scorer that gives the same
answer to the same call gives the same metrics over any number of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from allpairs.errors import UserError, nearest

Score = Callable[[np.ndarray, np.ndarray], Any]
Form = Literal["pairs", "tiles"]
Job = tuple[np.ndarray, np.ndarray]
"""Query rows and gallery rows of one call."""
Map = Callable[[Callable[[Job], np.ndarray], Iterable[Job]], Iterable[np.ndarray]]
"""Applies a function to jobs and gives the results in their order, as the built-in ``map`` does."""
Progress = Callable[[int, int], None]
"""Told the pairs scored so far, and all of them."""

FORMS = ("pairs", "tiles")
BATCH = 4096  # pairs per call
SHOWN = 5  # pairs named in a refusal


def check_form(form: str, batch: int) -> None:
    """Refuse an unknown form, or a batch that holds no pair, by UserError."""
    if form not in FORMS:
        raise UserError(f"unknown form {form!r} of a scorer{nearest(form, FORMS)} (accepted: {', '.join(FORMS)})")
    if batch < 1:
        raise UserError(f"batch={batch}; accepted: pairs per call of the scorer, 1 or more")


def answers(
    score: Score, jobs: Iterable[Job], *, form: Form, map: Map, progress: Progress | None, total: int
) -> Iterator[np.ndarray]:
    """Yield the scorer's finite float32 answers to `jobs`, in their order; UserError names the rows of a wrong one.

    `jobs` may be far more than fit into memory: they are made as `map` asks for them.
    """
    asked: deque[Job] = deque()

    def noted() -> Iterator[Job]:
        for job in jobs:
            asked.append(job)
            yield job

    given = iter(map(partial(answer, score), noted()))
    done = 0
    try:
        for values in given:
            if not asked:
                raise UserError("map gave more results than it got jobs; accepted: one each, in their order")
            _check(values, asked.popleft(), form)
            done += values.size
            if progress is not None:
                progress(done, total)
            yield values
        if done < total:
            raise UserError(f"map gave results for {done} of {total} pairs; accepted: one each, in their order")
    finally:
        if hasattr(given, "close"):
            given.close()  # workers end now, not when the garbage is collected


def answer(score: Score, job: Job) -> np.ndarray:
    """Call the scorer for one job, in whichever process, and return what it says as a float32 array."""
    with torch.no_grad():
        values = score(*job)
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", torch.float32).numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        raise UserError(
            f"the scorer returned {type(values).__name__} for {_rows(job)}; accepted: an array or tensor of numbers"
        )
    return array.astype(np.float32, copy=False)


def _check(values: np.ndarray, job: Job, form: Form) -> None:
    queries, items = job
    wanted = (len(queries),) if form == "pairs" else (len(queries), len(items))
    if values.shape != wanted:
        raise UserError(
            f"the scorer returned shape {list(values.shape)} for {_rows(job)}; accepted in the form {form!r}:"
            f" {list(wanted)}"
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        named = [(queries[at[0]], items[at[-1]]) for at in bad[:SHOWN]]
        pairs = ", ".join(f"query row {query} with gallery row {item}" for query, item in named)
        more = f" and {len(bad) - SHOWN} more pairs" if len(bad) > SHOWN else ""
        raise UserError(f"the scorer returned NaN or infinite scores for {pairs}{more}")


def _rows(job: Job) -> str:
    return " and ".join(
        f"{len(rows)} {side} rows ({', '.join(map(str, rows[:SHOWN]))}{', …' if len(rows) > SHOWN else ''})"
        for side, rows in zip(("query", "gallery"), job, strict=True)
    )
