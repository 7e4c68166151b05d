"""Where everything lies on the fixed grid of score tiles: the order of rows and columns, and the slots of their pairs.

Both sides are reordered so that positives lie near the diagonal, whatever the order of the input: few tiles then hold
any. The layout follows from the positives alone, so every process that counts a part of the gallery finds the same.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrieval_eval.positives import Positives


@dataclass(frozen=True, eq=False)
class Direction:
    """The pairs of one direction, in slots: by the place of their query on the grid, then as in `positives`."""

    positives: Positives
    order: np.ndarray  # [N] the query at each place

    @cached_property
    def counts(self) -> np.ndarray:
        """Positives of the query at each place, [N]."""
        return self.positives.counts[self.order]

    @cached_property
    def starts(self) -> np.ndarray:
        """First slot of each place, and the number of slots, [N + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def pairs(self) -> np.ndarray:
        """Index into `positives.indices` of the pair in each slot, [P]."""
        shift = self.positives.offsets[self.order] - self.starts[:-1]
        return np.arange(self.starts[-1]) + np.repeat(shift, self.counts)

    def slots(self, start: int, stop: int) -> slice:
        """Slots of the places from `start` to before `stop`."""
        return slice(int(self.starts[start]), int(self.starts[stop]))


class Layout:
    """Orders of queries (rows) and gallery items (columns), and both directions' slots.

    `to_reverse` [P] holds, for each pair of the reverse direction, its index in the forward one.
    """

    def __init__(self, positives: Positives) -> None:
        # Queries by their first positive, then items by their first query in that order: groups become neighbours.
        has = np.flatnonzero(positives.counts)
        first_item = np.full(len(positives), positives.gallery)
        first_item[has] = positives.indices[positives.offsets[has]]
        rows = np.argsort(first_item, kind="stable")
        self.row_of = _inverse(rows)
        first_row = np.full(positives.gallery, len(rows))  # items of no query go last
        np.minimum.at(first_row, positives.indices, self.row_of[positives.owners])
        columns = np.argsort(first_row, kind="stable")
        self.column_of = _inverse(columns)
        self.forward = Direction(positives, rows)
        self.to_reverse = np.argsort(positives.indices, kind="stable")
        self.backward = Direction(positives.transposed(), columns)

    def pairs_in(self, rows: range, columns: range) -> np.ndarray:
        """Indices of the positive pairs in a rectangle of places, ascending by slot."""
        pairs = self.forward.pairs[self.forward.slots(rows.start, rows.stop)]
        column = self.column_of[self.forward.positives.indices[pairs]]
        return pairs[(column >= columns.start) & (column < columns.stop)]


def _inverse(order: np.ndarray) -> np.ndarray:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place
