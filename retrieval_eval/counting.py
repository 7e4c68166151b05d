"""Exact ranks by counting: how many gallery items score above, and how many level with, every positive of a query.

One tile of scores serves both directions. The positives' scores are read from the very same tiles that are counted (a
separately computed row-wise dot product rounds differently and moves R@1 by many points), so there are two passes: over
the few tiles that hold positives, for the thresholds; then over all tiles, for the counts.

A `GallerySlice` counts a range of columns, a range of rows at a time. Its results are integers, so they add up to the
same counts however the grid is cut, and whoever computes them: this process, or many (`retrieval_eval.sharded`).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from allpairs.errors import UserError
from retrieval_eval.positives import Positives
from retrieval_eval.tiles import Blocks, MatrixTiles, SlotOrder, TileLayout, Tiles, exact_float32

# Shape suffixes: N queries, M gallery items, D embedding, T tile side, P positive pairs, R rows with many positives,
# L levels (the positives of a query, one after the other).

SORT_FROM = 256  # positives per query from which sorting its row of a tile is cheaper than comparing it with each
SORTED_ROWS = 256  # sorted together


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts per positive pair, in the order of `Positives.indices`: the gallery as seen from that positive's score.

    `equal` counts the positive itself, and `equal_positives` tells how many of the `equal` are positives of the query.
    """

    score: np.ndarray  # [P] float32
    greater: np.ndarray  # [P] int64
    equal: np.ndarray  # [P] int64
    equal_positives: np.ndarray  # [P] int64

    @classmethod
    def of(cls, positives: Positives, score: np.ndarray, greater: np.ndarray, equal: np.ndarray) -> "Counts":
        """Complete the counts [P] by those among the positives themselves."""
        order = np.lexsort((score, positives.owners))
        owners, ranked = positives.owners[order], score[order]
        new = np.r_[True, (np.diff(owners) != 0) | (np.diff(ranked) != 0)]
        group = np.cumsum(new) - 1
        tied = np.empty(len(score), np.int64)
        tied[order] = np.bincount(group)[group]
        return cls(score, greater, equal, tied)


@dataclass(frozen=True)
class SliceCounts:
    """What a slice counted for some rows: `greater` and `equal`, [2, slots] int64, per direction.

    The forward slots are those of the rows, seen over the slice's columns; the backward ones those of the columns, seen
    over the rows. `backward` is empty where only one direction is asked for.
    """

    forward: np.ndarray
    backward: np.ndarray


class GallerySlice:
    """Columns `columns` (from a multiple of the tile's side on) of the grid whose scores `tiles` makes."""

    def __init__(self, tiles: Tiles, layout: TileLayout, columns: range, *, both: bool) -> None:
        assert columns.start % tiles.side == 0, "a gallery slice begins with a tile"
        self.tiles, self.layout, self.columns, self.both = tiles, layout, columns, both

    @classmethod
    def of_matrices(
        cls,
        queries: torch.Tensor,
        gallery: torch.Tensor,
        layout: TileLayout,
        columns: range,
        *,
        both: bool,
        side: int,
        device: torch.device,
        cosine: bool,
    ) -> "GallerySlice":
        """Return the slice of the grid over queries [N, D] and gallery [M, D]."""
        order = layout.backward.order[columns.start : columns.stop]
        rows = Blocks(queries, layout.forward.order, side, device, cosine=cosine)
        answering = Blocks(gallery, order, side, device, cosine=cosine)
        return cls(MatrixTiles(rows, answering), layout, columns, both=both)

    def take(self, scores: np.ndarray) -> None:
        """Take the scores of all positives [P], in the order of the input, before anything is counted."""
        self._forward = _Thresholds(self.layout.forward, scores, self.tiles)
        self._backward = _Thresholds(self.layout.backward, scores[self.layout.to_reverse], self.tiles)

    def positive_scores(self, rows: range) -> np.ndarray:
        """Return the scores of the pairs `layout.pairs_in(rows, columns)`, float32."""
        tiles, layout = self.tiles, self.layout
        pairs = layout.pairs_in(rows, self.columns)
        row = layout.row_of[layout.forward.positives.owners[pairs]]
        column = layout.column_of[layout.forward.positives.indices[pairs]] - self.columns.start
        by_tile = np.lexsort((column // tiles.side, row // tiles.side))
        row, column = row[by_tile], column[by_tile]
        change = np.flatnonzero(np.diff(row // tiles.side) | np.diff(column // tiles.side)) + 1
        scores = np.empty(len(row), np.float32)
        bounds = np.r_[0, change, len(row)] if len(row) else np.zeros(1, np.int64)
        with exact_float32(tiles.device):
            for start, stop in pairwise(bounds):
                i, j = row[start] // tiles.side * tiles.side, column[start] // tiles.side * tiles.side
                S_TT = tiles.scores(int(i), int(j))
                r, c = (torch.from_numpy(x[start:stop] - first).to(S_TT.device) for x, first in ((row, i), (column, j)))
                scores[by_tile[start:stop]] = S_TT[r, c].cpu().numpy()
        return scores

    def count(self, rows: range) -> SliceCounts:
        """Count `rows`, from a multiple of the tile's side on, after `take`."""
        tiles = self.tiles
        forward = _Totals(self._forward, rows)
        backward = _Totals(self._backward, self.columns) if self.both else None
        with exact_float32(tiles.device):
            for i in range(rows.start, rows.stop, tiles.side):
                for j in range(0, len(self.columns), tiles.side):
                    S_TT = tiles.scores(i, j)
                    n, m = tiles.filled(i, j)
                    forward.add(S_TT, i, n, m, rows=True)
                    if backward is not None:
                        backward.add(S_TT, self.columns.start + j, m, n, rows=False)
        nothing = np.empty((2, 0), np.int64)
        return SliceCounts(forward.result(), nothing if backward is None else backward.result())


class _Thresholds:
    """Scores to compare with, per slot of one direction, and for each block of T places which rows compare when."""

    def __init__(self, direction: SlotOrder, scores: np.ndarray, tiles: Tiles) -> None:
        self.direction, self.side, self.device = direction, tiles.side, tiles.device
        self.work_TT = tiles.work_TT
        self.score_P = torch.from_numpy(scores[direction.pairs]).to(tiles.device)
        self.steps: dict[int, list[_Step]] = {}

    def block(self, start: int, filled: int) -> "list[_Step]":
        """Return the comparisons of the block at place `start`, made once: one per level, for the rows that have it."""
        if start not in self.steps:
            counts = self.direction.counts[start : start + filled]
            first = self.direction.starts[start : start + filled]
            steps = []
            few = np.where(counts < SORT_FROM, counts, 0)
            for level in range(few.max(initial=0)):
                active = np.flatnonzero(few > level)
                slots = torch.from_numpy(first[active] + level).to(self.device)
                steps.append(_Step(None if len(active) == filled else self._tensor(active), slots, self.score_P[slots]))
            self.steps[start] = steps
        return self.steps[start]

    def many(self, start: int, filled: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the block with so many positives that they are sorted: rows, first slots, numbers of slots."""
        counts = self.direction.counts[start : start + filled]
        rows = np.flatnonzero(counts >= SORT_FROM)
        return rows, self.direction.starts[start + rows], counts[rows]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


@dataclass(frozen=True)
class _Step:
    """One comparison per row: rows of the block (None: all), their slots, and the scores there."""

    rows: torch.Tensor | None
    slots: torch.Tensor
    score: torch.Tensor


class _Totals:
    """Counts of one direction over a range of places, added up tile by tile."""

    def __init__(self, thresholds: _Thresholds, places: range) -> None:
        self.thresholds = thresholds
        self.slots = thresholds.direction.slots(places.start, places.stop)
        size = self.slots.stop - self.slots.start
        # float64 sums of float32 counts of at most T: exact, and without a slow integer reduction.
        self.totals_2P = torch.zeros(2, size, dtype=torch.float64, device=thresholds.device)

    def add(self, S_TT: torch.Tensor, start: int, filled: int, others: int, *, rows: bool) -> None:
        """Add a tile whose first `filled` rows (or columns) are this direction's queries from place `start` on.

        `others` is the number of its columns (or rows) that are not padding.
        """
        along = 1 if rows else 0  # what is summed over
        S = S_TT[:filled, :others] if rows else S_TT[:others, :filled]
        for step in self.thresholds.block(start, filled):
            seen = S if step.rows is None else S.index_select(1 - along, step.rows)
            work = self.thresholds.work_TT[: seen.shape[0], : seen.shape[1]]
            score = step.score.unsqueeze(along)
            for total, compare in enumerate((torch.gt, torch.eq)):
                # Comparing into floats and summing those is ~100x cheaper than summing a boolean tile on a CPU. The
                # work tile is laid out like the scores, so that both are walked in the order of memory.
                hits = compare(seen, score, out=work).sum(along)
                self.totals_2P[total].index_add_(0, step.slots - self.slots.start, hits.double())
        many, first, size = self.thresholds.many(start, filled)
        for at in range(0, len(many), SORTED_ROWS):
            here = slice(at, at + SORTED_ROWS)
            self._sort(S if rows else S.T, many[here], first[here], size[here])

    def _sort(self, S: torch.Tensor, rows: np.ndarray, first: np.ndarray, size: np.ndarray) -> None:
        sorted_RT = S[torch.from_numpy(rows).to(S.device)].sort(1).values
        for level in range(0, int(size.max()), self.thresholds.side):
            within = np.minimum(np.arange(level, min(level + self.thresholds.side, size.max())), size[:, None] - 1)
            slots = torch.from_numpy(first[:, None] + within).to(S.device)  # (R, L); a row's last is repeated past it
            fresh = torch.from_numpy(np.arange(level, level + within.shape[1]) < size[:, None]).to(S.device)
            score = self.thresholds.score_P[slots]
            up_to = torch.searchsorted(sorted_RT, score, right=True)
            below = torch.searchsorted(sorted_RT, score)
            chosen = slots[fresh] - self.slots.start
            self.totals_2P[0].index_add_(0, chosen, (sorted_RT.shape[1] - up_to)[fresh].double())
            self.totals_2P[1].index_add_(0, chosen, (up_to - below)[fresh].double())

    def result(self) -> np.ndarray:
        return self.totals_2P.cpu().numpy().astype(np.int64)


class Assembly:
    """Whole counts from the results of the slices, in any order."""

    def __init__(self, layout: TileLayout, *, both: bool) -> None:
        self.layout, self.both = layout, both
        pairs = len(layout.to_reverse)
        self.scores = np.empty(pairs, np.float32)
        self.forward = np.zeros((2, pairs), np.int64)
        self.backward = np.zeros((2, pairs if both else 0), np.int64)

    def add_scores(self, rows: range, columns: range, scores: np.ndarray) -> None:
        """Take what `GallerySlice.positive_scores` returned for these rows and the slice's columns."""
        self.scores[self.layout.pairs_in(rows, columns)] = scores

    def add_part(self, rows: range, columns: range, part: SliceCounts) -> None:
        """Add what `GallerySlice.count` returned for these rows and the slice's columns."""
        self.forward[:, self.layout.forward.slots(rows.start, rows.stop)] += part.forward
        if self.both:
            self.backward[:, self.layout.backward.slots(columns.start, columns.stop)] += part.backward

    def counts(self) -> tuple[Counts, ...]:
        """Return the counts of the forward direction, then, if asked for, of the backward one.

        Raises UserError where a positive was not found level with itself: its score was computed twice, and once with
        other bits.
        """
        sides = [(self.layout.forward, self.scores, self.forward)]
        if self.both:
            sides.append((self.layout.backward, self.scores[self.layout.to_reverse], self.backward))
        found = []
        for direction, scores, totals in sides:
            by_pair = np.empty_like(totals)
            by_pair[:, direction.pairs] = totals
            counts = Counts.of(direction.positives, scores, *by_pair)
            if (counts.equal < counts.equal_positives).any():
                raise UserError("the same score came out with different bits: use machines (or devices) of one kind")
            found.append(counts)
        return tuple(found)
