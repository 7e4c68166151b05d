"""A whole batch as every rank sees it: who holds what, and what is known of all items.

Shapes: b rows of one rank, B rows of all ranks, D embedding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from allpairs.engine.anchors import AnchorObjective
from allpairs.engine.exchange import Layout, gather
from allpairs.engine.sides import Side, positive_slots

if TYPE_CHECKING:
    from allpairs.engine.pairs import Ids, Share

_CHUNK = 4096
"""Rows whose own scores are computed at once, so that the products of pairs never take O(B·D) memory."""


class Sides(NamedTuple):
    """Both sides of the whole batch, and how many anchors of each take part in a mean."""

    queries: Side
    candidates: Side

    @classmethod
    def of(
        cls,
        objective: AnchorObjective[Any],
        ids: "Ids",
        positive: Tensor | None,
        margins: Tensor | None,
        counts: Sequence[int],
        *,
        device: torch.device,
    ) -> "Sides":
        """Return the sides of a batch of `counts` queries and candidates from what is known of all of them."""
        query_slots = candidate_slots = None
        if objective.needs_slots:
            query_ids, candidate_ids = ids
            if query_ids is None or candidate_ids is None:
                query_ids = candidate_ids = torch.arange(counts[0], device=device)
            query_slots = positive_slots(query_ids, candidate_ids)
            candidate_slots = positive_slots(candidate_ids, query_ids)
        lowest = None if positive is None else positive.amin()
        return cls(
            Side(ids.queries, positive, margins, lowest, query_slots),
            Side(ids.candidates, positive, margins, lowest, candidate_slots),
        )


def own_scores(queries_bD: Tensor, candidates_bD: Tensor) -> Tensor:
    """Return d_i = q_i·c_i [b] of matched rows, in at least float32 and without gradient."""
    precision = torch.promote_types(queries_bD.dtype, torch.float32)
    scores_b = torch.empty(len(queries_bD), dtype=precision, device=queries_bD.device)
    for start in range(0, len(scores_b), _CHUNK):
        rows = slice(start, start + _CHUNK)
        products_RD = queries_bD[rows].detach().to(precision) * candidates_bD[rows].detach()
        torch.sum(products_RD, dim=1, out=scores_b[rows])
    return scores_b


def sides_of(objective: AnchorObjective[Any], share: "Share", layout: Layout) -> Sides:
    """Return both sides of the whole batch; O(B) numbers cross the ranks. A collective."""
    group = layout.group
    ids, margins, positive = share.ids, share.margins, None
    if ids.queries is not None and ids.candidates is not None:
        ids = ids._replace(
            queries=gather(ids.queries, layout.query_counts, group),
            candidates=gather(ids.candidates, layout.candidate_counts, group),
        )
    if objective.own_positive:
        with torch.no_grad():
            positive = own_scores(share.queries, share.candidates) * objective.score_scale()
        positive = gather(positive, layout.query_counts, group)
    if margins is not None:
        margins = gather(margins, layout.query_counts, group)
    counts = [len(layout.all_queries), len(layout.all_candidates)]
    return Sides.of(objective, ids, positive, margins, counts, device=share.queries.device)


def mean_factors(objective: AnchorObjective[Any], queries: int, candidates: int) -> tuple[float, float]:
    """Return what a query's and a candidate's ℓ_i are multiplied by: 1/B of their side for the mean, 1 for the sum."""
    return (1 / queries, 1 / candidates) if objective.reduction == "mean" else (1.0, 1.0)
