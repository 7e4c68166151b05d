"""The tiled backend: the same loss and gradient in O(B·D + tile²) memory, four matrix products in all.

Forward walks once (per pass of the statistic) over tiles of the scores of this rank's queries with all candidates; a
tile serves both directions, since its transpose is a tile of the candidates as anchors, whose statistics are then
merged over the ranks. Backward walks again, forms the weights W of a tile and adds W·C to the gradient of the queries
and Wᵀ·Q to that of the candidates; the ranks' gradients of all candidates are summed onto their owners. That is 2·B²·D
operations four times: scores forward, scores again, W·C and Wᵀ·Q. Objectives whose anchors look at two columns each
need no second walk: theirs is one product.

Shapes: bq, bc local queries and candidates, Bq, Bc those of all ranks, D embedding, R × C a tile.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from allpairs.engine import sparse
from allpairs.engine.batch import LocalBatch
from allpairs.engine.contract import AnchorObjective, Anchors, Tile
from allpairs.engine.exchange import RankLayout, gather, sum_onto_owners
from allpairs.engine.global_batch import GlobalBatch, mean_factors
from allpairs.engine.sparse import Factors, Gradients
from allpairs.engine.statistics import RowStatistic


class Statistics(NamedTuple):
    """The row statistics of both directions."""

    queries: RowStatistic
    """Of this rank's queries."""
    candidates: RowStatistic
    """Of all candidates; of this rank's queries alone until it is merged over the ranks."""


class TiledCall(NamedTuple):
    """One call of an objective that is walked in tiles: what is computed, and how."""

    objective: AnchorObjective[Any]
    queries_bD: Tensor
    """This rank's queries."""
    scale: Tensor | float
    """The factor on every score."""
    whole: GlobalBatch
    layout: RankLayout
    tile: int
    """The largest number of rows and of columns of a tile."""
    tiles: "type[PlainTiles]"


def loss(
    objective: AnchorObjective[Any], batch: LocalBatch, layout: RankLayout, tile: int, tiles: type["PlainTiles"]
) -> Tensor:
    """Return this rank's loss, equal to `dense.loss` in value and gradient.

    `tile`: the largest number of rows and of columns of a tile. Every rank backpropagates the same factor.
    """
    scale = objective.score_scale()
    fixed = scale.detach() if isinstance(scale, Tensor) else scale
    whole = GlobalBatch.gathered(objective, batch, layout)
    call = TiledCall(objective, batch.queries.detach(), fixed, whole, layout, tile, tiles)
    value: Tensor = _Tiled.apply(batch.queries, batch.candidates, scale, call)
    return value


class PlainTiles:
    """Tiles in PyTorch, on any device."""

    def __init__(self, call: TiledCall, candidates_BD: Tensor) -> None:
        self.objective = call.objective
        self.queries_bD = call.queries_bD
        self.scale = call.scale
        self.candidates_BD = candidates_BD
        self.whole = call.whole
        self.first_query = call.layout.own_queries.start

    def statistics(self, rows: range, columns: range, known: Statistics | None) -> Statistics:
        """Return what the queries `rows` and the candidates `columns` (global) learn of each other in one pass."""
        row_tile, column_tile = self._tiles(rows, columns)
        known_rows, known_columns = self._known(rows, columns, known)
        return Statistics(
            self.objective.statistic(row_tile, known_rows),
            self.objective.statistic(column_tile, known_columns),
        )

    def weights(self, rows: range, columns: range, statistics: Statistics, column_factor: float) -> Tensor:
        """Return W [R, C] of the tile in the type of the embeddings, the candidates' share times `column_factor`."""
        row_tile, column_tile = self._tiles(rows, columns)
        known_rows, known_columns = self._known(rows, columns, statistics)
        weights_RC = self.objective.weights(row_tile, known_rows)
        return weights_RC.add(self.objective.weights(column_tile, known_columns).T, alpha=column_factor)

    def add_own_pairs(
        self, rows: range, statistics: Statistics, query_gradient_RD: Tensor, candidate_gradient_BD: Tensor
    ) -> None:
        """Add what `weights` leaves out of the own pairs of `rows`: here nothing."""

    def _tiles(self, rows: range, columns: range) -> tuple[Tile, Tile]:
        local_rows = slice(rows.start - self.first_query, rows.stop - self.first_query)
        scores_RC = product(self.queries_bD[local_rows], self.candidates_BD[columns.start : columns.stop].T)
        scores_RC = scores_RC.mul_(self.scale)
        whole = self.whole
        if not rows:
            return _nothing_to_see(scores_RC, whole.query_anchors(rows)), _nothing_to_see(
                scores_RC.new_zeros(len(columns), 1), whole.candidate_anchors(columns)
            )
        row_tile = whole.query_tile(scores_RC, rows, columns)
        return row_tile, whole.transposed(row_tile, rows, columns)

    def _known(self, rows: range, columns: range, statistics: Statistics | None) -> Any:
        if statistics is None:
            return None, None
        local_rows = slice(rows.start - self.first_query, rows.stop - self.first_query)
        return statistics.queries.rows(local_rows), statistics.candidates.rows(slice(columns.start, columns.stop))


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries_bD: Tensor, candidates_bD: Tensor, scale: Tensor | float, call: TiledCall) -> Tensor:
        """`queries_bD` and `scale` are those of the call, here to get their gradients."""
        objective, whole, layout = call.objective, call.whole, call.layout
        candidates_BD = gather(candidates_bD, layout.candidate_counts, layout.group)
        tiles = call.tiles(call, candidates_BD)
        statistics = None
        for _ in range(objective.passes):
            statistics = _walk(tiles, call, statistics)
        assert statistics is not None

        own = layout.own_candidates
        query_factor, candidate_factor = mean_factors(objective, len(layout.all_queries), len(layout.all_candidates))
        of_queries = objective.losses(whole.query_anchors(layout.own_queries), statistics.queries)
        of_candidates = objective.losses(
            whole.candidate_anchors(own), statistics.candidates.rows(slice(own.start, own.stop))
        )
        ctx.call, ctx.tiles, ctx.statistics = call, tiles, statistics
        ctx.learns_scale = isinstance(scale, Tensor)
        return (query_factor * of_queries.sum() + candidate_factor * of_candidates.sum()) * layout.world_size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        call, statistics, tiles = ctx.call, ctx.statistics, ctx.tiles
        objective, whole, layout = call.objective, call.whole, call.layout
        query_factor, _ = mean_factors(objective, len(layout.all_queries), len(layout.all_candidates))
        factors = Factors(gradient * (layout.world_size * query_factor), call.scale)

        of_rows = objective.sparse_weights(whole.query_anchors(layout.own_queries), statistics.queries)
        of_columns = objective.sparse_weights(whole.candidate_anchors(layout.all_candidates), statistics.candidates)
        if of_rows is None or of_columns is None:
            gradients = _gradients(tiles, call, statistics, factors)
        else:
            both = sparse.BothDirections(of_rows, of_columns)
            gradients = sparse.gradients(tiles.queries_bD, tiles.candidates_BD, layout, both, factors)
        of_candidates_bD = sum_onto_owners(gradients.candidates, layout.candidate_counts, layout.group)
        of_scale = None
        if ctx.learns_scale:
            # From the sums in float32: in half precision, what is left of this sum would be rounding.
            of_scale = gradients.along_queries.to(call.scale.dtype).reshape(call.scale.shape)
        return gradients.queries, of_candidates_bD.to(tiles.queries_bD.dtype), of_scale, None


def _walk(tiles: PlainTiles, call: TiledCall, known: Statistics | None) -> Statistics:
    """Return what one pass finds in the whole strip; the candidates' part is merged over the ranks."""
    layout, tile = call.layout, call.tile
    row_pieces: list[RowStatistic] = []
    column_pieces: list[RowStatistic] = []
    for rows in _pieces(layout.own_queries, tile):
        row_piece: RowStatistic | None = None
        for number, columns in enumerate(_pieces(layout.all_candidates, tile)):
            statistics = tiles.statistics(rows, columns, known)
            row_piece = statistics.queries if row_piece is None else row_piece.merge(statistics.queries)
            if number == len(column_pieces):
                column_pieces.append(statistics.candidates)
            else:
                column_pieces[number] = column_pieces[number].merge(statistics.candidates)
        assert row_piece is not None
        row_pieces.append(row_piece)
    of_candidates = type(column_pieces[0]).join(column_pieces)
    if layout.world_size > 1:
        of_candidates = of_candidates.reduce(layout.group)
    return Statistics(type(row_pieces[0]).join(row_pieces), of_candidates)


def _gradients(tiles: PlainTiles, call: TiledCall, statistics: Statistics, factors: Factors) -> Gradients:
    """Return Σ_j W_ij c_j of this rank's queries and its part of Σ_i W_ij q_i of all candidates."""
    layout, tile = call.layout, call.tile
    query_factor, candidate_factor = mean_factors(call.objective, len(layout.all_queries), len(layout.all_candidates))
    column_factor = candidate_factor / query_factor
    queries_bD, candidates_BD = tiles.queries_bD, tiles.candidates_BD
    precision = torch.promote_types(queries_bD.dtype, torch.float32)
    query_gradient_bD = torch.empty_like(queries_bD)
    candidate_gradient_BD = torch.zeros_like(candidates_BD, dtype=precision)
    along_queries = torch.zeros((), dtype=precision, device=queries_bD.device)
    for rows in _pieces(layout.own_queries, tile):
        local_rows = slice(rows.start - layout.own_queries.start, rows.stop - layout.own_queries.start)
        queries_RD = queries_bD[local_rows]
        query_gradient_RD = torch.zeros_like(queries_RD, dtype=precision)
        for columns in _pieces(layout.all_candidates, tile):
            cut = slice(columns.start, columns.stop)
            weights_RC = tiles.weights(rows, columns, statistics, column_factor)
            add_product(query_gradient_RD, weights_RC, candidates_BD[cut])
            add_product(candidate_gradient_BD[cut], weights_RC.T, queries_RD)
        tiles.add_own_pairs(rows, statistics, query_gradient_RD, candidate_gradient_BD)
        query_gradient_RD *= factors.loss
        along_queries += (query_gradient_RD * queries_RD).sum()
        query_gradient_bD[local_rows] = query_gradient_RD.mul_(factors.scale)
    candidate_gradient_BD.mul_(factors.loss).mul_(factors.scale)
    return Gradients(query_gradient_bD, candidate_gradient_BD, along_queries)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left` @ `right` in at least float32."""
    if left.dtype not in (torch.float16, torch.bfloat16):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left` @ `right` to `total`, products of half precision in float32."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        total.add_(product(left, right))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _nothing_to_see(scores_RC: Tensor, anchors: Anchors) -> Tile:
    """Return a tile whose columns are neither positives nor negatives: what a rank without queries sees."""
    nothing_RC = torch.zeros_like(scores_RC, dtype=torch.bool)
    others = None if anchors.positive is None else scores_RC.new_zeros(scores_RC.shape[1])
    return Tile(anchors, scores_RC, 0, nothing_RC, nothing_RC, others)


def _pieces(items: range, size: int) -> Iterator[range]:
    """Cut `items` into pieces of at most `size`; nothing is one empty piece, so that a rank without rows takes part."""
    for start in range(items.start, max(items.stop, items.start + 1), size):
        yield range(start, min(start + size, items.stop))
