"""What every rank knows of all rows of a batch, and the tiles of scores that the objective sees of it.

Shapes: b rows of one rank, B rows of all ranks (Bq queries, Bc candidates), D embedding, R × C a tile of queries and
candidates, K positives of the anchor with the most, T texts of the query with the most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from allpairs.engine.batch import Ids, LocalBatch
from allpairs.engine.contract import AnchorObjective, Anchors, Tile
from allpairs.engine.exchange import RankLayout, gather
from allpairs.engine.rows import Rows
from allpairs.errors import UserError

_CHUNK = 4096
"""Rows whose own scores are computed at once, so that the products of pairs never take O(B·D) memory."""


class Texts(NamedTuple):
    """Which candidates say what a positive of a query says: neither positives nor negatives, unless they are its own.

    A text is a number from 0.
    """

    of_queries: Tensor
    """[Bq, T] int64: the texts of each query's positives, padded with −1."""
    of_candidates: Tensor
    """[Bc] int64."""

    @classmethod
    def of(cls, ids: Ids, texts_B: Tensor, own_positive: bool) -> "Texts":
        """Return the texts of a batch; `texts_B` [Bc] are any numbers, equal for equal texts."""
        texts_B = texts_B.unique(return_inverse=True)[1]
        if own_positive or ids.queries is None or ids.candidates is None:
            return cls(texts_B[:, None], texts_B)
        slots_BT = _positive_slots(ids.queries, ids.candidates)
        return cls(texts_B[slots_BT.clamp(min=0)].masked_fill(slots_BT < 0, -1), texts_B)

    def same(self, rows: range, columns: range) -> Tensor:
        """Return which of the candidates `columns` say what a positive of the queries `rows` says [R, C]."""
        of_columns_C = self.of_candidates[columns.start : columns.stop]
        first_R, *others = self.of_queries[rows.start : rows.stop].T
        same_RC = first_R[:, None] == of_columns_C
        for text_R in others:
            same_RC |= text_R[:, None] == of_columns_C
        return same_RC


@dataclass(frozen=True)
class GlobalBatch:
    """Ids, positives and margins of all rows of all ranks: O(B·K) numbers."""

    ids: Ids
    """[Bq] and [Bc] int64, or neither: row i then matches row i."""
    own_positive: bool = True
    """Whether an anchor's only positive is its own pair rather than every column of its id."""
    positive: Tensor | None = None
    """[B]: d_i, without gradient; None for objectives that take positives from ids."""
    margins: Tensor | None = None
    """[B]: one margin per pair."""
    query_slots: Tensor | None = None
    """[Bq, K]: see `Anchors.slots`."""
    candidate_slots: Tensor | None = None
    """[Bc, K]."""
    lowest_positive: Tensor | None = None
    """[]: min_k d_k."""
    texts: Texts | None = None

    @classmethod
    def of(
        cls,
        objective: AnchorObjective[Any],
        ids: Ids,
        *,
        positive: Tensor | None,
        margins: Tensor | None,
        texts: Tensor | None,
        counts: Sequence[int],
        device: torch.device,
    ) -> "GlobalBatch":
        """Return the batch of `counts` queries and candidates from what is known of all of them.

        `texts` [Bc]: which candidates say the same.

        Raises:
            UserError: all ids are equal, which leaves an objective that needs negatives nothing to learn.
        """
        if objective.needs_negatives:
            _refuse_equal(ids)
        query_slots = candidate_slots = None
        if objective.needs_slots:
            query_ids, candidate_ids = ids
            if query_ids is None or candidate_ids is None:
                query_ids = candidate_ids = torch.arange(counts[0], device=device)
            query_slots = _positive_slots(query_ids, candidate_ids)
            candidate_slots = _positive_slots(candidate_ids, query_ids)
        lowest = None if positive is None else positive.amin()
        alike = None if texts is None else Texts.of(ids, texts, objective.own_positive)
        return cls(ids, objective.own_positive, positive, margins, query_slots, candidate_slots, lowest, alike)

    @classmethod
    def gathered(cls, objective: AnchorObjective[Any], batch: LocalBatch, layout: RankLayout) -> "GlobalBatch":
        """Return what all ranks have, from each rank's own; O(B) numbers cross the ranks. A collective."""
        group = layout.group
        ids, margins, texts, positive = batch.ids, batch.margins, batch.texts, None
        if ids.queries is not None and ids.candidates is not None:
            ids = Ids(
                gather(ids.queries, layout.query_counts, group), gather(ids.candidates, layout.candidate_counts, group)
            )
        if objective.own_positive:
            with torch.no_grad():
                positive = objective.scored(own_scores(*batch.rows()))
            positive = gather(positive, layout.query_counts, group)
        if margins is not None:
            margins = gather(margins, layout.query_counts, group)
        if texts is not None:
            texts = gather(texts, layout.candidate_counts, group)
        counts = [len(layout.all_queries), len(layout.all_candidates)]
        return cls.of(
            objective,
            ids,
            positive=positive,
            margins=margins,
            texts=texts,
            counts=counts,
            device=batch.queries.device,
        )

    @cached_property
    def single_ids(self) -> Ids | None:
        """Ids [B] of which equal ones, and no others, say that a pair is no negative; None where no ids can.

        Without texts they are `ids`, perhaps none. With texts a pair is masked by either of two ids, which is as good
        as one id where whatever meets by the one does so within what meets by the other.
        """
        if self.texts is None:
            return self.ids
        if not self.own_positive:
            return None
        texts_B = self.texts.of_candidates
        if self.ids.queries is None:
            return Ids(texts_B, texts_B)
        instances_B = self.ids.queries.unique(return_inverse=True)[1]
        one_instance_B, one_text_B = _is_constant(instances_B, texts_B), _is_constant(texts_B, instances_B)
        if not bool((one_instance_B | one_text_B).all()):
            return None
        ids_B = torch.where(one_instance_B, 2 * instances_B, 2 * texts_B + 1)
        return Ids(ids_B, ids_B)

    def query_anchors(self, rows: range) -> Anchors:
        """Return the queries `rows` (global) as anchors."""
        return self._anchors(rows, self.query_slots)

    def candidate_anchors(self, columns: range) -> Anchors:
        """Return the candidates `columns` (global) as anchors."""
        return self._anchors(columns, self.candidate_slots)

    def query_tile(self, scores_RC: Tensor, rows: range, columns: range) -> Tile:
        """Return the tile of the queries `rows` against the candidates `columns`."""
        is_positive_RC, is_negative_RC = self._masks(rows, columns, scores_RC.device)
        return Tile(
            anchors=self.query_anchors(rows),
            scores=scores_RC,
            first_column=columns.start,
            is_positive=is_positive_RC,
            is_negative=is_negative_RC,
            column_positive=None if self.positive is None else self.positive[columns.start : columns.stop],
        )

    def candidate_tile(self, scores_CR: Tensor, columns: range, rows: range) -> Tile:
        """Return the tile of the candidates `columns` as anchors against the queries `rows`."""
        return self.transposed(self.query_tile(scores_CR.T, rows, columns), rows, columns)

    def transposed(self, tile: Tile, rows: range, columns: range) -> Tile:
        """Return `tile`, which is `query_tile` of `rows` and `columns`, seen from its candidates as anchors."""
        return Tile(
            anchors=self.candidate_anchors(columns),
            scores=tile.scores.T,
            first_column=rows.start,
            is_positive=None if tile.is_positive is None else tile.is_positive.T,
            is_negative=None if tile.is_negative is None else tile.is_negative.T,
            column_positive=None if self.positive is None else self.positive[rows.start : rows.stop],
        )

    def _anchors(self, items: range, slots: Tensor | None) -> Anchors:
        cut = slice(items.start, items.stop)
        return Anchors(
            positive=None if self.positive is None else self.positive[cut],
            margin=None if self.margins is None else self.margins[cut],
            lowest_positive=self.lowest_positive,
            slots=None if slots is None else slots[cut],
        )

    def _masks(self, rows: range, columns: range, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Return which pairs are positives and which are negatives [R, C]; None: no pair is, and every pair is."""
        pairs_RC = None
        if rows.start < columns.stop and columns.start < rows.stop:
            rows_R = torch.arange(rows.start, rows.stop, device=device)
            pairs_RC = rows_R[:, None] == torch.arange(columns.start, columns.stop, device=device)
        of_rows, of_columns = self.ids
        if of_rows is None or of_columns is None:
            same_RC = is_positive_RC = pairs_RC
        else:
            same_RC = of_rows[rows.start : rows.stop, None] == of_columns[columns.start : columns.stop]
            is_positive_RC = pairs_RC if self.own_positive else same_RC
        if self.texts is not None:
            alike_RC = self.texts.same(rows, columns)
            same_RC = alike_RC if same_RC is None else same_RC | alike_RC
        return is_positive_RC, None if same_RC is None else ~same_RC


def own_scores(queries_bD: Tensor | Rows, candidates_bD: Tensor | Rows) -> Tensor:
    """Return d_i = q_i·c_i [b] of matched rows, in at least float32 and without gradient."""
    precision = torch.promote_types(queries_bD.dtype, torch.float32)
    scores_b = torch.empty(len(queries_bD), dtype=precision, device=queries_bD.device)
    for start in range(0, len(scores_b), _CHUNK):
        rows = slice(start, start + _CHUNK)
        products_RD = queries_bD[rows].detach().to(precision) * candidates_bD[rows].detach()
        torch.sum(products_RD, dim=1, out=scores_b[rows])
    return scores_b


def with_own_scores(tile: Tile, rows: range) -> Tile:
    """Return `tile`, which must hold all columns, with d_i taken from its scores, so that gradients flow to them."""
    own_R = torch.arange(rows.start, rows.stop, device=tile.scores.device)
    positive_R = tile.scores.gather(1, own_R[:, None]).squeeze(1)
    return replace(tile, anchors=replace(tile.anchors, positive=positive_R))


def mean_factors(objective: AnchorObjective[Any], queries: int, candidates: int) -> tuple[float, float]:
    """Return what a query's and a candidate's f(i) are multiplied by: 1/B of their side for the mean, 1 for the sum."""
    return (1 / queries, 1 / candidates) if objective.reduction == "mean" else (1.0, 1.0)


def _refuse_equal(ids: Ids) -> None:
    """Raise UserError if several items of both sides all have one id: a class's label, say, or ids never filled in."""
    if ids.queries is None or ids.candidates is None or min(len(ids.queries), len(ids.candidates)) < 2:
        return
    first = ids.queries[:1]
    if bool(((ids.queries == first).all() & (ids.candidates == first).all()).item()):
        raise UserError(
            f"query_ids: all ids of the batch are {int(first)}, so that no pair is a negative and nothing could be "
            "learned; accepted: ids that tell instances apart, such as the image of each row, or none where row i "
            "matches row i alone"
        )


def _is_constant(values_B: Tensor, groups_B: Tensor) -> Tensor:
    """Return for each item [B] whether all items of its group have one value; groups are numbers from 0 to below B."""
    lowest_B, highest_B = (
        torch.zeros_like(values_B).scatter_reduce_(0, groups_B, values_B, how, include_self=False)
        for how in ("amin", "amax")
    )
    return (lowest_B == highest_B)[groups_B]


def _positive_slots(ids_R: Tensor, other_ids_B: Tensor) -> Tensor:
    """Return the columns [R, K] that share each anchor's id, lowest first and padded with −1. K is at least 1."""
    order_B = other_ids_B.argsort(stable=True)
    sorted_B = other_ids_B[order_B]
    first_R = torch.searchsorted(sorted_B, ids_R)
    count_R = torch.searchsorted(sorted_B, ids_R, right=True) - first_R
    most = max(int(count_R.max()) if len(count_R) else 0, 1)
    step_K = torch.arange(most, device=ids_R.device)
    place_RK = (first_R[:, None] + step_K).clamp(max=len(order_B) - 1)
    return order_B[place_RK].masked_fill(step_K >= count_R[:, None], -1)
