"""`evaluate`: exact retrieval metrics of two sets of embeddings, in both directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np

from allpairs.errors import UserError
from retrieval_eval.counting import Levels, count
from retrieval_eval.inputs import Embeddings, pair_of_matrices, rows
from retrieval_eval.positives import Positives
from retrieval_eval.ties import TREATMENTS, Ranks, average_precision

RSUM = (1, 5, 10)  # the recalls that RSUM and the average recall are made of


@dataclass(frozen=True, eq=False)
class Report:
    """What `evaluate` found. Directions are keyed by name, ``i2t`` and ``t2i`` by default, the forward one first."""

    metrics: dict[str, float]
    """``i2t/r1``, ``/r5``, ``/r10``, ``/average_recall``, ``/median_rank``, ``/mean_rank``, ``/map5``, the same under
    ``t2i``, and ``rsum``.

    Recalls, their average and RSUM in percent, mAP@5 in 0..1; the expected values over all orders of tied items."""
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


def evaluate(
    queries: Embeddings,
    gallery: Embeddings,
    query_ids: Any = None,
    gallery_ids: Any = None,
    *,
    positives: Sequence[Sequence[int]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    query_name: str = "i",
    gallery_name: str = "t",
    both_directions: bool = True,
    device: str | None = None,
    tile: int | None = None,
) -> Report:
    """Rank the gallery [M, D] for each query [N, D] by dot product, and the queries for each gallery item, exactly.

    A pair is positive where ``query_ids[q] == gallery_ids[g]``, or where g is in ``positives[q]``; positions mean
    nothing. rank(q) = 1 + #{gallery items that score above its best positive}, with ties as in `retrieval_eval.ties`.
    Scores are float32 without TF32 on the device of `queries` or on `device`. ``both_directions=False`` leaves the
    second direction out (and RSUM with it), for galleries with items that belong to no query. RSUM and the average
    recall need 1, 5 and 10 in `ks`. `tile` is the side of the score tiles, by default what suits the device.

    Raises UserError, with the rows and ids, for non-finite, empty or unequal inputs and for queries without positives.
    """
    accepted_ks = tuple(sorted(set(ks)))
    if not accepted_ks or accepted_ks[0] < 1:
        raise UserError(f"ks must be positive integers, got {tuple(ks)}")
    if query_name == gallery_name:
        raise UserError(f"query_name and gallery_name are both {query_name!r}: the directions need different names")
    Q, G = pair_of_matrices(queries, gallery, query_ids, gallery_ids, device)
    pairs = _pairs(len(Q), len(G), query_ids, gallery_ids, positives)
    forward, backward = f"{query_name}2{gallery_name}", f"{gallery_name}2{query_name}"
    sets = {forward: pairs, backward: pairs.transposed()} if both_directions else {forward: pairs}
    for direction, ids in zip(sets, (query_ids, gallery_ids), strict=False):
        _refuse_orphans(sets[direction], direction, ids)

    levels = dict(zip(sets, count(Q, G, pairs, both=both_directions, tile=tile), strict=False))
    ranks = {direction: Ranks.of(counts) for direction, counts in levels.items()}
    ties: dict[str, dict[str, float]] = {treatment: {} for treatment in TREATMENTS}
    for direction in sets:
        _measure(ties, direction, levels[direction], ranks[direction], accepted_ks)
    if both_directions and set(RSUM) <= set(accepted_ks):
        for metrics in ties.values():
            metrics["rsum"] = fsum(metrics[f"{direction}/r{k}"] for direction in sets for k in RSUM)
    tied = {direction: int(found.tied.sum()) for direction, found in ranks.items()}
    return Report(ties["expected"], ties, ranks, tied, sets, accepted_ks)


def _pairs(queries: int, gallery: int, query_ids: Any, gallery_ids: Any, positives: Any) -> Positives:
    if positives is not None:
        if len(positives) != queries:
            raise UserError(f"positives has {len(positives)} lists for {queries} queries: one list per query is needed")
        return Positives.from_lists(positives, gallery)
    if query_ids is None or gallery_ids is None:
        raise UserError("nothing says which pairs are positive: give query_ids and gallery_ids, or positives")
    return Positives.from_ids(query_ids, gallery_ids)


def _refuse_orphans(positives: Positives, direction: str, ids: Any) -> None:
    orphans = np.flatnonzero(positives.counts == 0)
    if len(orphans):
        raise UserError(
            f"{len(orphans)} of {len(positives)} {direction} queries have no positive: {rows(orphans, ids)}"
            "; accepted: at least one positive each, or one direction alone (both_directions=False, --one-way)"
        )


def _measure(
    ties: dict[str, dict[str, float]], direction: str, levels: Levels, ranks: Ranks, ks: tuple[int, ...]
) -> None:
    hits = {k: ranks.hits(k) for k in ks}
    precision = average_precision(levels)
    for treatment, metrics in ties.items():
        recalls = {k: 100.0 * fsum(hits[k][treatment]) / len(levels.greater) for k in ks}
        rank = getattr(ranks, treatment)
        metrics.update({f"{direction}/r{k}": recall for k, recall in recalls.items()})
        if set(RSUM) <= set(ks):
            metrics[f"{direction}/average_recall"] = fsum(recalls[k] for k in RSUM) / len(RSUM)
        metrics[f"{direction}/median_rank"] = float(np.median(rank))
        metrics[f"{direction}/mean_rank"] = fsum(rank) / len(rank)
        metrics[f"{direction}/map5"] = fsum(precision[treatment]) / len(rank)
