"""Exact ranks by counting: how many gallery items score above, and how many level with, a query's best positives.

One tile of scores serves both directions. The positives' scores are read from the very same tiles that are counted (a
separately computed row-wise dot product rounds differently and moves R@1 by many points), so there are two passes: over
the few tiles that hold positives, for the thresholds; then over all tiles, for the counts. Both sides are reordered so
that positives lie near the diagonal, which keeps the first pass short whatever the order of the input. Tiles have one
fixed shape, the last ones padded: a score then has the same bits wherever its pair lies.
"""

from dataclasses import dataclass

import numpy as np
import torch

from retrieval_eval.positives import Positives
from retrieval_eval.precision import exact_float32

# Shape suffixes: N queries, M gallery items, D embedding, T tile side, L levels (a query's best positives, best first).

LEVELS = 5  # the best positives that are ranked per query: enough for every recall and for mAP@5
TILE = {"cpu": 1024, "cuda": 4096}  # 4 MB and 64 MB of scores: the CPU's fits its second-level cache


@dataclass(frozen=True, eq=False)
class Levels:
    """Counts for the best L positives of each query, best first; entries past a query's positives are all zero.

    `equal` counts the positive itself, and `equal_positives` tells how many of the `equal` are positives.
    """

    score: np.ndarray  # [N, L] float32, -inf past the last positive
    greater: np.ndarray  # [N, L] int64
    equal: np.ndarray  # [N, L] int64
    equal_positives: np.ndarray  # [N, L] int64


def count(
    queries: torch.Tensor, gallery: torch.Tensor, positives: Positives, *, both: bool = True, tile: int | None = None
) -> tuple[Levels, ...]:
    """Count for queries [N, D] against gallery [M, D], then, if `both`, for the gallery against the queries.

    Every query (and gallery item, if `both`) must have a positive. Extra memory: two tiles of scores and two of
    embeddings.
    """
    # Queries by their first positive, then gallery items by their first query in that order: groups become neighbours.
    reverse = positives.transposed()
    query_order = np.argsort(positives.indices[positives.offsets[:-1]], kind="stable")
    place = np.empty_like(query_order)
    place[query_order] = np.arange(len(query_order))
    first = np.full(positives.gallery, len(query_order))  # items of no query go last
    np.minimum.at(first, positives.indices, place[positives.owners])
    gallery_order = np.argsort(first, kind="stable")

    with exact_float32(queries.device):
        tiles = _Tiles(queries, gallery, query_order, gallery_order, tile or TILE.get(queries.device.type, 1024))
        scores = _positive_scores(tiles, positives)
        to_reverse = np.argsort(positives.indices, kind="stable")
        forward = _Counter(positives, scores, query_order, tiles)
        backward = _Counter(reverse, scores[to_reverse], gallery_order, tiles) if both else None
        for i in range(0, len(queries), tiles.side):
            for j in range(0, len(gallery), tiles.side):
                S_TT = tiles.scores(i, j)
                n, m = tiles.filled(i, j)
                forward.add(S_TT, i, n, m)
                if backward is not None:
                    backward.add(S_TT.T, j, m, n)
    return (forward.levels(),) if backward is None else (forward.levels(), backward.levels())


class _Tiles:
    """Tiles [T, T] of the score matrix in the reordered rows and columns, padded with zero embeddings."""

    def __init__(
        self, queries: torch.Tensor, gallery: torch.Tensor, rows: np.ndarray, columns: np.ndarray, side: int
    ) -> None:
        self.side = side
        self.sides = (queries, gallery)
        self.orders = tuple(torch.from_numpy(order).to(queries.device) for order in (rows, columns))
        self.blocks = tuple(queries.new_zeros(side, queries.shape[1]) for _ in range(2))  # [T, D] each
        self.loaded = [-1, -1]
        self.buffer = queries.new_empty(side, side)  # [T, T]
        self.work = queries.new_empty(side, side)  # [T, T], for comparisons

    def filled(self, i: int, j: int) -> tuple[int, int]:
        """Rows and columns of tile (i, j) that are not padding."""
        return min(self.side, len(self.sides[0]) - i), min(self.side, len(self.sides[1]) - j)

    def scores(self, i: int, j: int) -> torch.Tensor:
        """Return the tile that starts at reordered row i and column j, valid until the next call."""
        for side, start in enumerate((i, j)):
            if self.loaded[side] != start:
                chosen = self.orders[side][start : start + self.side]
                self.blocks[side][len(chosen) :].zero_()
                torch.index_select(self.sides[side], 0, chosen, out=self.blocks[side][: len(chosen)])
                self.loaded[side] = start
        return torch.mm(self.blocks[0], self.blocks[1].T, out=self.buffer)


def _positive_scores(tiles: _Tiles, positives: Positives) -> np.ndarray:
    """Scores of all positive pairs, in the order of `positives.indices`, [P] float32."""
    places = []
    for order in tiles.orders:
        place = np.empty(len(order), np.int64)
        place[order.cpu().numpy()] = np.arange(len(order))
        places.append(place)
    row, column = places[0][positives.owners], places[1][positives.indices]
    by_tile = np.lexsort((column // tiles.side, row // tiles.side))
    row, column = row[by_tile], column[by_tile]
    change = np.flatnonzero(np.diff(row // tiles.side) | np.diff(column // tiles.side)) + 1
    scores = np.empty(len(row), np.float32)
    for start, stop in zip(np.r_[0, change], np.r_[change, len(row)], strict=True):
        i, j = row[start] // tiles.side * tiles.side, column[start] // tiles.side * tiles.side
        S_TT = tiles.scores(int(i), int(j))
        r, c = (torch.from_numpy(x[start:stop] - first).to(S_TT.device) for x, first in ((row, i), (column, j)))
        scores[by_tile[start:stop]] = S_TT[r, c].cpu().numpy()
    return scores


class _Counter:
    """Counts of one direction, added up tile by tile."""

    def __init__(self, positives: Positives, scores: np.ndarray, order: np.ndarray, tiles: _Tiles) -> None:
        self.order = order
        self.work = tiles.work
        self.score, self.equal_positives = _best_positives(positives, scores)
        thresholds = np.where(np.isneginf(self.score), np.inf, self.score)[order]  # nothing exceeds or equals inf
        self.used = np.minimum(positives.counts[order], LEVELS)
        self.thresholds_NL = torch.from_numpy(thresholds).to(self.work.device)
        # float64 sums of float32 counts of at most T: exact, and without a slow integer reduction.
        self.greater_NL = torch.zeros_like(self.thresholds_NL, dtype=torch.float64)
        self.equal_NL = torch.zeros_like(self.greater_NL)

    def add(self, S_TT: torch.Tensor, start: int, rows: int, columns: int) -> None:
        """Add a tile whose first `rows` rows are this direction's queries from `start` on."""
        here = slice(start, start + rows)
        # The work tile is laid out like the scores, so that both are walked in the order of memory.
        work = self.work if S_TT.is_contiguous() else self.work.T
        for level in range(self.used[here].max()):
            threshold = self.thresholds_NL[here, level, None]
            for compare, total in ((torch.gt, self.greater_NL), (torch.eq, self.equal_NL)):
                # Comparing into floats and summing those is ~100x cheaper than summing a boolean tile on a CPU.
                hits = compare(S_TT[:rows], threshold, out=work[:rows])
                total[here, level] += hits[:, :columns].sum(1)

    def levels(self) -> Levels:
        """Return the counts in the input's order."""
        greater, equal = (np.empty(self.score.shape, np.int64) for _ in range(2))
        greater[self.order] = self.greater_NL.cpu().numpy()
        equal[self.order] = self.equal_NL.cpu().numpy()
        return Levels(self.score, greater, equal, self.equal_positives)


def _best_positives(positives: Positives, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best L scores per query [N, L] (-inf past the end), and how many of its positives share each."""
    owners = positives.owners
    order = np.lexsort((-scores, owners))  # by query, best first; owners stay sorted
    ranked = scores[order]
    new = np.r_[True, (np.diff(owners) != 0) | (np.diff(ranked) != 0)]
    group = np.cumsum(new) - 1
    tied = np.bincount(group)[group]  # positives of the same query and score, per pair
    level = np.arange(len(ranked)) - np.repeat(positives.offsets[:-1], positives.counts)
    kept = level < LEVELS
    depth = min(LEVELS, int(positives.counts.max()))
    best = np.full((len(positives), depth), -np.inf, np.float32)
    equal = np.zeros((len(positives), depth), np.int64)
    best[owners[kept], level[kept]] = ranked[kept]
    equal[owners[kept], level[kept]] = tied[kept]
    return best, equal
