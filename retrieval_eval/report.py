"""`Report`: what an evaluation found, and how its fields come from counts."""

from dataclasses import dataclass, field
from math import fsum
from typing import Any

import numpy as np

from retrieval_eval.counting import Counts
from retrieval_eval.metrics import metrics_of
from retrieval_eval.positives import Positives
from retrieval_eval.searched.found import Searched
from retrieval_eval.ties import TREATMENTS, Levels, Ranks, average_precisions
from retrieval_eval.whole_ranking import Treatment, whole_ranking_metrics


@dataclass(frozen=True, eq=False)
class Report:
    """What `evaluate` found. Directions are keyed by name, ``i2t`` and ``t2i`` by default, the forward one first."""

    metrics: dict[str, float]
    """``i2t/r1``, ``/r5``, ``/r10``, ``/average_recall``, ``/median_rank``, ``/mean_rank``, ``/map5``, ``/map_cut5``,
    ``/mrr``, ``/ndcg``, ``/r_precision``, ``/map_r``, the same under ``t2i``, and ``rsum``.

    Recalls, their average and RSUM in percent, the others but the ranks in 0..1 (`retrieval_eval.whole_ranking` defines
    them); the expected values over all orders of tied items."""
    ties: dict[str, dict[str, float]]
    """The same metrics under ``optimistic``, ``expected`` (equal to `metrics`) and ``pessimistic``."""
    ranks: dict[str, Ranks]
    """Per direction the ranks of each query's best positive: `.optimistic`, `.expected`, `.pessimistic`, `.tied`."""
    tied_queries: dict[str, int]
    """Per direction how many queries' ranks depend on the order of tied items."""
    positives: dict[str, Positives]
    """Per direction the positives of each query."""
    ks: tuple[int, ...]
    """The k of the recalls."""
    counts: dict[str, Counts]
    """Per direction the counts of each positive pair, in the order of `positives[direction].indices`."""
    per_query: dict[str, dict[str, np.ndarray]]
    """Per direction the values per query, [N] float64 each, whose means `metrics` holds (`median_rank`: the median of
    ``rank``): ``r1`` … in percent, ``rank``, ``map5``, ``map_cut5``, ``mrr``, ``ndcg``, ``r_precision``, ``map_r``."""
    cosine: bool = False
    """Whether the embeddings were normalised before they were ranked: what is given them later does so too."""
    searched: dict[str, Searched] = field(default_factory=dict)
    """Per direction how the engine ``faiss`` searched. Then `metrics` and `per_query` hold recalls and mAP@5 alone, and
    ranks beyond `depth` are lower bounds. Empty: every rank was counted."""

    @property
    def depth(self) -> int | None:
        """The rank up to which ranks are told; None: all are."""
        return min((found.depth for found in self.searched.values()), default=None)

    @property
    def directions(self) -> tuple[str, ...]:
        """Names of the directions, the forward one first."""
        return tuple(self.ranks)

    def queries(self, direction: str) -> int:
        """Return how many queries a direction has."""
        return len(self.positives[direction])

    def gallery(self, direction: str) -> int:
        """Return how many gallery items a direction has."""
        return self.positives[direction].gallery


def report_fields(
    counts: dict[str, Counts], positives: dict[str, Positives], ks: tuple[int, ...], *, whole: bool = True
) -> dict[str, Any]:
    """Return the fields of a `Report` on these counts per direction, whose scores need only order positives.

    `whole`: they are known for every rank; else only the metrics of the first places are formed.
    """
    ranks: dict[str, Ranks] = {}
    per_query: dict[str, dict[str, np.ndarray]] = {}
    means: dict[Treatment, dict[str, dict[str, float]]] = {treatment: {} for treatment in TREATMENTS}
    for direction, found in counts.items():
        levels = Levels.of(positives[direction], found)
        ranks[direction] = Ranks.of(levels)
        precisions = average_precisions(levels, positives[direction].counts)
        for treatment in TREATMENTS:  # one after the other: their values are not held together
            values = _values(
                positives[direction], found, ranks[direction], precisions[treatment], treatment=treatment, ks=ks,
                whole=whole,
            )  # fmt: skip
            means[treatment][direction] = _means(values)
            if treatment == "expected":
                per_query[direction] = values
    ties = {treatment: metrics_of(of_directions, ks) for treatment, of_directions in means.items()}
    return {
        "metrics": ties["expected"],
        "ties": ties,
        "ranks": ranks,
        "tied_queries": {direction: int(found.tied.sum()) for direction, found in ranks.items()},
        "positives": positives,
        "ks": ks,
        "counts": counts,
        "per_query": per_query,
    }


def _values(
    positives: Positives,
    counts: Counts,
    ranks: Ranks,
    precisions: dict[str, np.ndarray],
    *,
    treatment: Treatment,
    ks: tuple[int, ...],
    whole: bool,
) -> dict[str, np.ndarray]:
    """Per metric the values of the queries under one treatment of ties, [N] float64 each."""
    recalls = {f"r{k}": 100.0 * ranks.hits(k)[treatment] for k in ks}
    if not whole:
        return recalls | precisions
    return {
        **recalls,
        "rank": getattr(ranks, treatment).astype(np.float64),
        **precisions,
        **whole_ranking_metrics(positives, counts, treatment),
    }


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    # Sums that no order of the queries changes.
    means = {name: fsum(each.tolist()) / len(each) for name, each in values.items()}
    return means | ({"median_rank": float(np.median(values["rank"]))} if "rank" in values else {})
