"""The tiled backend: the same loss and gradient in O(B·D + tile²) memory, four matrix products in all.

Forward walks once (per pass of the statistic) over tiles of the scores of this rank's queries with all candidates; a
tile serves both directions, since its transpose is a tile of the candidates as anchors, whose statistics are then
merged over the ranks. Backward walks again, forms the weights W of a tile and adds W·C to the gradient of the queries
and Wᵀ·Q to that of the candidates; the ranks' gradients of all candidates are summed onto their owners. That is 2·B²·D
operations four times: scores forward, scores again, W·C and Wᵀ·Q. Objectives whose anchors look at two columns each
need no second walk: theirs is one product.

Shapes: bq, bc local queries and candidates, Bq, Bc those of all ranks, D embedding, R × C a tile.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from allpairs.engine import sparse
from allpairs.engine.batch import LocalBatch
from allpairs.engine.chunks import Columns, both, chunks, inside
from allpairs.engine.contract import AnchorObjective, Anchors, Tile, biased
from allpairs.engine.exchange import Arriving, RankLayout, SumsOntoOwners, gather
from allpairs.engine.global_batch import GlobalBatch, mean_factors
from allpairs.engine.products import add_product, as_given, only_once, product, to_half
from allpairs.engine.rows import Rows
from allpairs.engine.sparse import Factors, Gradients, UnequalFactors
from allpairs.engine.statistics import RowStatistic


class Statistics(NamedTuple):
    """The row statistics of both directions."""

    queries: RowStatistic
    """Of this rank's queries."""
    candidates: RowStatistic
    """Of all candidates; of this rank's queries alone until it is merged over the ranks."""


class TileSizes(NamedTuple):
    """The largest number of rows and of columns of a tile."""

    forward: int
    backward: int


class TiledCall(NamedTuple):
    """One call of an objective that is walked in tiles: what is computed, and how."""

    objective: AnchorObjective[Any]
    scale: Tensor | float
    """The factor on every score."""
    bias: Tensor | float
    """What is added to every score."""
    whole: GlobalBatch
    layout: RankLayout
    tile: TileSizes
    tiles: "type[PlainTiles]"


def loss(
    objective: AnchorObjective[Any],
    batch: LocalBatch,
    layout: RankLayout,
    whole: GlobalBatch,
    *,
    tile: TileSizes,
    tiles: type["PlainTiles"],
) -> Tensor:
    """Return this rank's loss, equal to `dense.loss` in value and gradient."""
    scale, bias = objective.score_scale(), objective.score_bias()
    call = TiledCall(objective, _fixed(scale), _fixed(bias), whole, layout, tile, tiles)
    value: Tensor = _Tiled.apply(batch.queries, batch.candidates, scale, bias, call, batch.inverses)
    return value


def _fixed(number: Tensor | float) -> Tensor | float:
    return number.detach() if isinstance(number, Tensor) else number


class PlainTiles:
    """Tiles in PyTorch, on any device."""

    unit: Tensor | float = 1.0
    """What `weights` gives are W times this."""

    def __init__(self, call: TiledCall, queries_bD: Rows, candidates_BD: Rows) -> None:
        self.call = call
        self.queries_bD = queries_bD
        """This rank's queries."""
        self.candidates_BD = candidates_BD

    def statistics(self, rows: range, columns: range, known: Statistics | None) -> Statistics:
        """Return what the queries `rows` and the candidates `columns` (global) learn of each other in one pass."""
        row_tile, column_tile = self._tiles(rows, columns)
        known_rows, known_columns = self._known(rows, columns, known)
        return Statistics(
            self.call.objective.statistic(row_tile, known_rows),
            self.call.objective.statistic(column_tile, known_columns),
        )

    def begin_weights(self, statistics: Statistics) -> None:
        """Prepare what `weights` needs for every tile: here nothing."""

    def weights(self, rows: range, columns: Columns, statistics: Statistics, factors: Factors) -> Tensor:
        """Return W [R, C] of the tile, in at least float32, each direction times its factor."""
        parts = [self._weights(rows, part, statistics, factors) for part in columns.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _weights(self, rows: range, columns: range, statistics: Statistics, factors: Factors) -> Tensor:
        objective = self.call.objective
        row_tile, column_tile = self._tiles(rows, columns)
        known_rows, known_columns = self._known(rows, columns, statistics)
        weights_RC = objective.weights(row_tile, known_rows)
        of_columns_RC = objective.weights(column_tile, known_columns).T
        if factors.unequal is not None:
            weights_RC = weights_RC * factors.unequal.own
            of_columns_RC = of_columns_RC * factors.unequal.of_candidates[columns.start : columns.stop]
        return weights_RC.add(of_columns_RC, alpha=factors.column)

    def add_own_pairs(
        self, pairs: range, statistics: Statistics, query_gradient_PD: Tensor, candidate_gradient_PD: Tensor
    ) -> None:
        """Add to the gradients of `pairs` of this rank what `weights` leaves out of them: here nothing."""

    def move_own_pairs(
        self,
        weights_RC: Tensor,
        rows: range,
        columns: Columns,
        query_gradient_RD: Tensor,
        candidate_gradient_CD: Tensor,
    ) -> None:
        """Add the own pairs of a tile in float32 and leave 0 for them: the largest weights are not to be rounded."""
        parts = zip(columns.ranges, columns.split(weights_RC, dim=1), columns.split(candidate_gradient_CD), strict=True)
        for part, part_weights_RC, part_gradient_CD in parts:
            own = both(rows, part)
            if not own:
                continue
            in_rows, in_columns = inside(own, rows), inside(own, part)
            diagonal_P = part_weights_RC[in_rows, in_columns].diagonal()
            weights_P1 = diagonal_P.clone()[:, None]
            diagonal_P.zero_()
            query_gradient_RD[in_rows] += weights_P1 * self.candidates_BD[own.start : own.stop]
            part_gradient_CD[in_columns] += weights_P1 * self.queries_bD[self.local(own)]

    def local(self, rows: range) -> slice:
        """Return where the global `rows` of this rank are among its own."""
        return inside(rows, self.call.layout.own_queries)

    def _tiles(self, rows: range, columns: range) -> tuple[Tile, Tile]:
        scores_RC = product(self.queries_bD[self.local(rows)], self.candidates_BD[columns.start : columns.stop].T)
        scores_RC = biased(scores_RC.mul_(self.call.scale), self.call.bias)
        whole = self.call.whole
        if not rows:
            return _nothing_to_see(scores_RC, whole.query_anchors(rows)), _nothing_to_see(
                scores_RC.new_zeros(len(columns), 1), whole.candidate_anchors(columns)
            )
        row_tile = whole.query_tile(scores_RC, rows, columns)
        return row_tile, whole.transposed(row_tile, rows, columns)

    def _known(self, rows: range, columns: range, statistics: Statistics | None) -> Any:
        if statistics is None:
            return None, None
        return (
            statistics.queries.rows(self.local(rows)),
            statistics.candidates.rows(slice(columns.start, columns.stop)),
        )


class _Tiled(torch.autograd.Function):
    """Every tensor that backward needs is saved with autograd, which frees it after use and sees it changed before."""

    @staticmethod
    def forward(ctx: Any, queries_bD: Tensor, candidates_bD: Tensor, *given: Any) -> Tensor:
        """`given`: scale and bias, which are those of the call and get gradients here, the call, and 1/lengths."""
        scale, bias, call, inverses = given
        objective, whole, layout = call.objective, call.whole, call.layout
        with as_given(queries_bD):
            own_rows = LocalBatch(queries_bD, candidates_bD, whole.ids, None, inverses=inverses).rows()
            of_all = own_rows[1]
            if layout.world_size > 1:
                of_all = Arriving(of_all[:], layout)
            tiles = call.tiles(call, own_rows[0], of_all)
            statistics = None
            for _ in range(objective.passes):
                statistics = _walk(tiles, call, statistics)
            assert statistics is not None
            if isinstance(tiles.candidates_BD, Arriving):
                tiles.candidates_BD = tiles.candidates_BD.arrived()

            own = layout.own_candidates
            factors = mean_factors(objective, len(layout.all_queries), len(layout.all_candidates))
            of_queries = objective.losses(whole.query_anchors(layout.own_queries), statistics.queries)
            of_candidates = objective.losses(
                whole.candidate_anchors(own), statistics.candidates.rows(slice(own.start, own.stop))
            )
        tensors: list[Tensor] = []
        ctx.kept = _taken_out((tiles, statistics, own_rows[1]), tensors)
        ctx.save_for_backward(*tensors)
        ctx.learns = isinstance(scale, Tensor), isinstance(bias, Tensor)
        return (factors[0] * of_queries.sum() + factors[1] * of_candidates.sum()) * layout.world_size

    @staticmethod
    @only_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tiles, statistics, own_candidates = _put_back(ctx.kept, ctx.saved_tensors)
        call: TiledCall = tiles.call
        objective, whole, layout = call.objective, call.whole, call.layout
        with as_given(gradient):
            factors = _factors(gradient, call)
            of_rows = objective.sparse_weights(whole.query_anchors(layout.own_queries), statistics.queries)
            of_columns = objective.sparse_weights(whole.candidate_anchors(layout.all_candidates), statistics.candidates)
            if of_rows is None or of_columns is None:
                gradients = _gradients(tiles, statistics, factors, own_candidates)
            else:
                embeddings = sparse.Embeddings(tiles.queries_bD, tiles.candidates_BD, own_candidates)
                weights = sparse.BothDirections(of_rows, of_columns)
                gradients = sparse.gradients(embeddings, layout, weights, factors)
            of_scale = of_bias = None
            learns_scale, learns_bias = ctx.learns
            if learns_scale:
                # From the sums in float32: in half precision, what is left of this sum would be rounding.
                assert isinstance(call.scale, Tensor)
                of_scale = gradients.along_queries.to(call.scale.dtype).reshape(call.scale.shape)
            if learns_bias:
                assert isinstance(call.bias, Tensor)
                of_bias = _bias_gradient(call, statistics, factors).to(call.bias.dtype).reshape(call.bias.shape)
        return gradients.queries, gradients.candidates, of_scale, of_bias, None, None


def _factors(gradient: Tensor, call: TiledCall) -> Factors:
    """Return what the sums of both directions are multiplied by, where each rank may have its own incoming gradient.

    An anchor's weights carry the gradient that came in on the rank that owns it, wherever they are computed.
    """
    layout = call.layout
    query_factor, candidate_factor = mean_factors(call.objective, len(layout.all_queries), len(layout.all_candidates))
    column, all_ranks = candidate_factor / query_factor, layout.world_size * query_factor
    if layout.world_size > 1:
        each_N = gather(gradient.reshape(1), [1] * layout.world_size, layout.group)
        values = each_N.tolist()
        if len(set(values)) > 1 and not any(math.isnan(value) for value in values):
            counts_N = torch.tensor(layout.candidate_counts, device=gradient.device)
            unequal = UnequalFactors(gradient, each_N.repeat_interleave(counts_N))
            return Factors(gradient.new_tensor(all_ranks), call.scale, column, unequal)
    return Factors(gradient * all_ranks, call.scale, column)


def _bias_gradient(call: TiledCall, statistics: Statistics, factors: Factors) -> Tensor:
    """Return this rank's part of Σ_ij W_ij: that of its own anchors, of both sides."""
    own = call.layout.own_candidates
    of_queries = call.objective.bias_slopes(statistics.queries).sum()
    of_candidates = call.objective.bias_slopes(statistics.candidates.rows(slice(own.start, own.stop))).sum()
    mine = factors.loss if factors.unequal is None else factors.loss * factors.unequal.own
    return mine * (of_queries + factors.column * of_candidates)


def _walk(tiles: PlainTiles, call: TiledCall, known: Statistics | None) -> Statistics:
    """Return what one pass finds in the whole strip; the candidates' part is merged over the ranks."""
    layout = call.layout
    # Tiles of a second pass are always plain, and hold every score.
    tile = call.tile.forward if known is None else call.tile.backward
    parts = _own_first(layout)
    row_pieces: list[RowStatistic] = []
    column_pieces: dict[int, RowStatistic] = {}
    for rows in _pieces(layout.own_queries, tile):
        by_part: dict[int, RowStatistic] = {}
        for part in parts:
            for columns in _pieces(part, tile):
                statistics = tiles.statistics(rows, columns, known)
                _merge_into(by_part, part.start, statistics.queries)
                _merge_into(column_pieces, columns.start, statistics.candidates)
        row_pieces.append(reduce(lambda earlier, later: earlier.merge(later), _ascending(by_part)))
    of_candidates = type(row_pieces[0]).join(_ascending(column_pieces))
    if layout.world_size > 1:
        of_candidates = of_candidates.reduce(layout.group)
    return Statistics(type(row_pieces[0]).join(row_pieces), of_candidates)


def _own_first(layout: RankLayout) -> list[range]:
    """Return all candidates in up to three parts, this rank's own first: it has them while the others' still travel."""
    every, own = layout.all_candidates, layout.own_candidates
    parts = [own, range(every.start, own.start), range(own.stop, every.stop)]
    return [part for part in parts if part] or [every]


def _merge_into(pieces: dict[int, RowStatistic], place: int, later: RowStatistic) -> None:
    earlier = pieces.get(place)
    pieces[place] = later if earlier is None else earlier.merge(later)


def _ascending(pieces: dict[int, RowStatistic]) -> list[RowStatistic]:
    return [pieces[place] for place in sorted(pieces)]


def _gradients(tiles: PlainTiles, statistics: Statistics, factors: Factors, own_candidates_bD: Rows) -> Gradients:
    """Return Σ_j W_ij c_j of this rank's queries and, summed over the ranks, Σ_i W_ij q_i of its candidates.

    Where there are other ranks, candidates are the outermost loop: a chunk of them is finished, and travels to its
    owners while the next is computed.
    """
    call = tiles.call
    layout, tile = call.layout, call.tile.backward
    queries_bD, candidates_BD = tiles.queries_bD, tiles.candidates_BD
    if factors.unequal is not None:  # the fused kernels know one factor for all
        tiles = PlainTiles(call, queries_bD, candidates_BD)
    tiles.begin_weights(statistics)
    precision = torch.promote_types(queries_bD.dtype, torch.float32)
    query_gradient_bD = torch.empty(queries_bD.shape, dtype=queries_bD.dtype, device=queries_bD.device)
    unfinished: dict[range, Tensor] = {}
    along_queries = torch.zeros((), dtype=precision, device=queries_bD.device)
    sums = SumsOntoOwners(layout, own_candidates_bD, precision)
    all_chunks = chunks(layout.candidate_counts)
    for chunk in all_chunks:
        own_piece, own_place = chunk.pieces[layout.rank], layout.rank * chunk.length
        candidate_gradient_CD = sums.buffer(chunk)
        for rows in _pieces(layout.own_queries, tile):
            queries_RD = queries_bD[tiles.local(rows)]
            query_gradient_RD = unfinished.pop(rows, None)
            if query_gradient_RD is None:
                query_gradient_RD = torch.zeros_like(queries_RD, dtype=precision)
            for columns in chunk.columns(tile):
                column_gradient_CD = candidate_gradient_CD[columns.place : columns.place + len(columns)]
                weights_RC = tiles.weights(rows, columns, statistics, factors)
                inverse = None
                if weights_RC.dtype != queries_bD.dtype:
                    if call.objective.own_positive:
                        tiles.move_own_pairs(weights_RC, rows, columns, query_gradient_RD, column_gradient_CD)
                    weights_RC, inverse = to_half(weights_RC, queries_bD.dtype)
                add_product(query_gradient_RD, weights_RC, columns.of(candidates_BD), inverse)
                add_product(column_gradient_CD, weights_RC.T, queries_RD, inverse)
                del weights_RC  # before the next, so that one W is held and not two
            if pairs := both(rows, own_piece):
                own = slice(own_place + pairs.start - own_piece.start, own_place + pairs.stop - own_piece.start)
                in_rows = inside(pairs, rows)
                tiles.add_own_pairs(pairs, statistics, query_gradient_RD[in_rows], candidate_gradient_CD[own])
            if chunk is not all_chunks[-1]:
                unfinished[rows] = query_gradient_RD
                continue
            query_gradient_RD *= factors.loss / tiles.unit
            along_queries += (query_gradient_RD * queries_RD).sum()
            local = tiles.local(rows)
            query_gradient_bD[local] = queries_bD.to_given_(query_gradient_RD.mul_(factors.scale), local.start)
            del query_gradient_RD
        sums.send(chunk, candidate_gradient_CD.mul_(factors.loss / tiles.unit).mul_(factors.scale))
    return Gradients(query_gradient_bD, sums.finished(), along_queries)


def _nothing_to_see(scores_RC: Tensor, anchors: Anchors) -> Tile:
    """Return a tile whose columns are neither positives nor negatives: what a rank without queries sees."""
    nothing_RC = torch.zeros_like(scores_RC, dtype=torch.bool)
    others = None if anchors.positive is None else scores_RC.new_zeros(scores_RC.shape[1])
    return Tile(anchors, scores_RC, 0, nothing_RC, nothing_RC, others)


def _pieces(items: range, size: int) -> Iterator[range]:
    """Cut `items` into pieces of at most `size`; nothing is one empty piece, so that a rank without rows takes part."""
    for start in range(items.start, max(items.stop, items.start + 1), size):
        yield range(start, min(start + size, items.stop))


class _Place(NamedTuple):
    """Where a tensor was, and where it is among those that were taken out."""

    number: int


def _taken_out(value: Any, tensors: list[Tensor]) -> Any:
    """Return `value` with a place for every tensor in it, and append the tensors to `tensors`."""

    def take(tensor: Tensor) -> _Place:
        tensors.append(tensor)
        return _Place(len(tensors) - 1)

    return _changed(value, Tensor, take)


def _put_back(value: Any, tensors: tuple[Tensor, ...]) -> Any:
    return _changed(value, _Place, lambda place: tensors[place.number])


def _changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return `value` with everything of `kind` changed, in tuples, dataclasses and tiles."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, PlainTiles):
        changed = copy.copy(value)
        vars(changed).update({name: _changed(part, kind, change) for name, part in vars(value).items()})
        return changed
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(_changed(getattr(value, field.name), kind, change) for field in fields(value)))
    if isinstance(value, tuple):
        parts = (_changed(part, kind, change) for part in value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
