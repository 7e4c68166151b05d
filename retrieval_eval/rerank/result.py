"""The report of a scorer: as `evaluate` gives it, with the first stage's beside it and the shortlist's ceiling."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retrieval_eval.counting import Counts
from retrieval_eval.positives import Positives
from retrieval_eval.report import Report


@dataclass(frozen=True, eq=False, kw_only=True)
class Reranked(Report):
    """A `Report` of a scorer's ranking; `metrics` also holds ``ceiling/…`` for what a shortlist bounds.

    The ceiling of a metric is its value if the scorer put every positive of the shortlist first. Ranks have none.
    """

    k: int | None
    """Items of each query that were scored, None for all of them."""
    pairs: int
    """How many pairs were scored."""
    reached: dict[str, np.ndarray]
    """Per direction, which positive pairs [P] the shortlist holds, in the order of `positives[direction].indices`.

    `counts[direction].score` is the scorer's for these and the first stage's for the others."""
    first_stage: Report | None = None
    """The report of the pooled vectors that made the shortlist."""

    def __str__(self) -> str:
        shown = "rsum" if "rsum" in self.metrics else f"{self.directions[0]}/r{self.ks[0]}"
        beside = [] if self.first_stage is None else [f"first stage {self.first_stage.metrics[shown]:.2f}"]
        if f"ceiling/{shown}" in self.metrics:
            beside.append(f"the shortlist's ceiling {self.metrics[f'ceiling/{shown}']:.2f}")
        done = "every pair scored" if self.k is None else f"the first {self.k:,} of each query re-ranked"
        compared = f" ({', '.join(beside)})" if beside else ""
        return f"{done}: {shown} {self.metrics[shown]:.2f}{compared}; {self.pairs:,} pairs scored"


def ordered(positives: Positives, greater: np.ndarray, equal: np.ndarray) -> Counts:
    """Return counts [P] whose `score` is the place itself: items of a query are level where as many are above them."""
    return Counts.of(positives, -greater.astype(np.float64), greater, equal)


def with_scores(fields: dict[str, Any], scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Put the pairs' own scores [P] per direction in place of what `ordered` ranked them by."""
    counts, ranks = {}, {}
    for direction, score in scores.items():
        found, sets = fields["counts"][direction], fields["positives"][direction]
        counts[direction] = replace(found, score=score)
        best = np.lexsort((found.greater, sets.owners))[sets.offsets[:-1]]  # the first of each query's
        ranks[direction] = replace(fields["ranks"][direction], score=score[best])
    return {**fields, "counts": counts, "ranks": ranks}
