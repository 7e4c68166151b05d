"""The two sides of a whole batch, queries and candidates, and the tiles of scores between them.

Shapes: B items of a side in the whole batch, R anchors, C columns, K positives of the anchor with the most.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from allpairs.engine.anchors import Anchors, Tile


@dataclass(frozen=True)
class Side:
    """What every rank knows of all B items of one side. O(B·K)."""

    ids: Tensor | None = None
    """[B] int64, or None: row i then matches row i."""
    positive: Tensor | None = None
    """[B]: d_i, without gradient; None for objectives that take positives from ids."""
    margin: Tensor | None = None
    """[B]: one margin per pair."""
    lowest_positive: Tensor | None = None
    """[]: min_k d_k."""
    slots: Tensor | None = None
    """[B, K]: see `Anchors.slots`."""

    def anchors(self, rows: range) -> Anchors:
        """Return the items `rows` as anchors."""
        cut = slice(rows.start, rows.stop)
        return Anchors(
            positive=None if self.positive is None else self.positive[cut],
            margin=None if self.margin is None else self.margin[cut],
            lowest_positive=self.lowest_positive,
            slots=None if self.slots is None else self.slots[cut],
        )


def tile_between(scores_RC: Tensor, anchors: Side, rows: range, others: Side, columns: range, *, own: bool) -> Tile:
    """Return the tile of the items `rows` of one side against the items `columns` of the other.

    `own`: whether an anchor's only positive is its own pair, the column of its own global index, rather than every
    column of its id.
    """
    pairs_RC = None
    if rows.start < columns.stop and columns.start < rows.stop:
        device = scores_RC.device
        rows_R = torch.arange(rows.start, rows.stop, device=device)
        pairs_RC = rows_R[:, None] == torch.arange(columns.start, columns.stop, device=device)
    if anchors.ids is None or others.ids is None:
        is_positive_RC, same_RC = pairs_RC, pairs_RC
    else:
        same_RC = anchors.ids[rows.start : rows.stop, None] == others.ids[columns.start : columns.stop]
        is_positive_RC = pairs_RC if own else same_RC
    return Tile(
        anchors=anchors.anchors(rows),
        scores=scores_RC,
        first_column=columns.start,
        is_positive=is_positive_RC,
        is_negative=None if same_RC is None else ~same_RC,
        column_positive=None if others.positive is None else others.positive[columns.start : columns.stop],
    )


def transpose(tile: Tile, anchors: Side, rows: range, others: Side, columns: range) -> Tile:
    """Return `tile`, which is that of the items `columns` of the side `others`, seen from its columns as anchors."""
    return Tile(
        anchors=anchors.anchors(rows),
        scores=tile.scores.T,
        first_column=columns.start,
        is_positive=None if tile.is_positive is None else tile.is_positive.T,
        is_negative=None if tile.is_negative is None else tile.is_negative.T,
        column_positive=None if others.positive is None else others.positive[columns.start : columns.stop],
    )


def with_own_scores(tile: Tile, rows: range) -> Tile:
    """Return `tile`, which must hold all columns, with d_i taken from its scores, so that gradients flow to them."""
    own_R = torch.arange(rows.start, rows.stop, device=tile.scores.device)
    positive_R = tile.scores.gather(1, own_R[:, None]).squeeze(1)
    return replace(tile, anchors=replace(tile.anchors, positive=positive_R))


def positive_slots(ids_R: Tensor, other_ids_B: Tensor) -> Tensor:
    """Return the columns [R, K] that share each anchor's id, lowest first and padded with −1. K is at least 1."""
    order_B = other_ids_B.argsort(stable=True)
    sorted_B = other_ids_B[order_B]
    first_R = torch.searchsorted(sorted_B, ids_R)
    count_R = torch.searchsorted(sorted_B, ids_R, right=True) - first_R
    most = max(int(count_R.max()) if len(count_R) else 0, 1)
    step_K = torch.arange(most, device=ids_R.device)
    place_RK = (first_R[:, None] + step_K).clamp(max=len(order_B) - 1)
    return order_B[place_RK].masked_fill(step_K >= count_R[:, None], -1)
