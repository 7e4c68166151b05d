"""Every pair scored, in tiles that are counted as they come: the matrix is never held.

The positives' scores are the thresholds of all counts, so the tiles with positives, which lie near the diagonal of the
grid, are scored first, and once more in their turn; there the positives keep the scores that they had.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, product
from math import isqrt

import numpy as np
import torch

from retrieval_eval.counting import Assembly, GallerySlice
from retrieval_eval.evaluate import checked_ks, refuse_orphans
from retrieval_eval.positives import Positives
from retrieval_eval.report import Report, report_fields
from retrieval_eval.rerank.result import Reranked
from retrieval_eval.rerank.scoring import BATCH, Form, Job, Map, Progress, Score, answers, check_form
from retrieval_eval.tiles import TileLayout, Tiles

Place = tuple[int, int]
"""Row and column at which a tile of the grid begins."""


def score_all(
    score: Score,
    positives: Positives,
    *,
    ks: Sequence[int] = (1, 5, 10),
    query_name: str = "i",
    gallery_name: str = "t",
    both_directions: bool = True,
    form: Form = "pairs",
    batch: int = BATCH,
    map: Map = map,
    progress: Progress | None = None,
    first_stage: Report | None = None,
) -> Reranked:
    """Rank by a scorer's scores of all pairs of N queries and M gallery items (`positives`: `Positives.from_ids`).

    `form` and `map` are as in `rerank`; a tile has √batch rows and columns. Memory: a tile per job under way.

    Raises UserError for a scorer that returns a wrong shape or a score that is not finite, and for queries without
    positives.
    """
    check_form(form, batch)
    accepted_ks = checked_ks(ks)
    forward, backward = f"{query_name}2{gallery_name}", f"{gallery_name}2{query_name}"
    sets = {forward: positives, backward: positives.transposed()} if both_directions else {forward: positives}
    for direction, of in sets.items():
        refuse_orphans(of, direction, None)

    rows, columns = range(len(positives)), range(positives.gallery)
    layout, side = TileLayout(positives), isqrt(batch)
    tiles = _Scored(layout, side)
    whole = GallerySlice(tiles, layout, columns, both=both_directions)
    first = tiles.with_positives()
    walk = chain(first, product(rows[::side], columns[::side]))
    total = len(rows) * len(columns) + sum(n * m for n, m in (tiles.filled(*place) for place in first))
    jobs = (tiles.job(place, form) for place in walk)
    tiles.answers = answers(score, jobs, form=form, map=map, progress=progress, total=total)

    assembly = Assembly(layout, both=both_directions)
    assembly.add_scores(rows, columns, whole.positive_scores(rows))
    tiles.known = assembly.scores
    whole.take(assembly.scores)
    assembly.add_part(rows, columns, whole.count(rows))
    for _ in tiles.answers:
        raise AssertionError("a tile was left over")
    fields = report_fields(dict(zip(sets, assembly.counts(), strict=True)), sets, accepted_ks)
    reached = {direction: np.ones(len(of.indices), bool) for direction, of in sets.items()}
    return Reranked(**fields, k=None, pairs=total, reached=reached, first_stage=first_stage)


class _Scored(Tiles):
    """Tiles [T, T] of a scorer's scores, which come in the order in which they are asked for."""

    answers: Iterator[np.ndarray]
    known: np.ndarray | None = None
    """Scores [P] of all positives, once they are known: they stay what they are in tiles that come again."""

    def __init__(self, layout: TileLayout, side: int) -> None:
        self.orders = layout.forward.order, layout.backward.order
        super().__init__(len(self.orders[0]), len(self.orders[1]), side, torch.device("cpu"))
        # The pairs by tile, row after row of tiles.
        pairs = layout.forward.positives
        place = np.stack([layout.row_of[pairs.owners], layout.column_of[pairs.indices]])  # (2, P)
        by_tile = np.lexsort((place[1] // side, place[0] // side))
        starts, firsts = np.unique(place[:, by_tile] // side * side, axis=1, return_index=True)
        self._pairs: dict[Place, np.ndarray] = {
            (int(i), int(j)): own for (i, j), own in zip(starts.T, np.split(by_tile, firsts[1:]), strict=True)
        }
        self._place = place

    def with_positives(self) -> list[Place]:
        """Return the tiles that hold positives, row after row."""
        return list(self._pairs)

    def job(self, place: Place, form: Form) -> Job:
        """Return the rows of queries and gallery that a tile's scores are of."""
        queries, items = (order[start : start + self.side] for order, start in zip(self.orders, place, strict=True))
        return (queries, items) if form == "tiles" else (np.repeat(queries, len(items)), np.tile(items, len(queries)))

    def scores(self, i: int, j: int) -> torch.Tensor:
        """Return the tile that starts at row place i and column place j, the next one to come."""
        n, m = self.filled(i, j)
        self.buffer_TT[:n, :m] = torch.from_numpy(next(self.answers).reshape(n, m))
        if self.known is not None and (i, j) in self._pairs:
            own = self._pairs[i, j]
            row, column = (torch.from_numpy(x) for x in self._place[:, own] - [[i], [j]])
            self.buffer_TT[row, column] = torch.from_numpy(self.known[own])
        return self.buffer_TT
