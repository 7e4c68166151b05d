"""The triton backend's tiles: scores and what follows from them in one kernel, so that no score is ever stored.

The walk, the exchange between ranks and the products with W are those of `allpairs.engine.tiled`; W is stored in the
type of the embeddings. Products of half precision are accumulated in float32, as are all statistics.

Shapes: b local queries, B candidates of all ranks, D embedding, R × C a tile.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from allpairs.engine.chunks import Columns, both
from allpairs.engine.rows import Rows, in_one_piece
from allpairs.engine.sparse import Factors
from allpairs.engine.statistics import HardestNegative, SoftExcess
from allpairs.engine.tiled import PlainTiles, Statistics, TiledCall

if TYPE_CHECKING:
    from allpairs.engine.fused import launches

_CHUNK = 4096
"""Pairs at a time in the passes over own pairs."""


class FusedTiles(PlainTiles):
    """Tiles of objectives with a `kernel`. Embeddings [*, D] with D a multiple of 16."""

    def __init__(self, call: TiledCall, queries_bD: Rows, candidates_BD: Rows) -> None:
        super().__init__(call, _aligned(queries_bD), _aligned(candidates_BD))
        from allpairs.engine.fused import instances

        single = call.whole.single_ids
        assert single is not None, "kernels mask by one id"
        of_queries, of_candidates = single
        self.by_ids = of_queries is not None and of_candidates is not None
        """Whether any pair may be of one instance, and not the own pairs alone."""
        if of_queries is None or of_candidates is None:
            of_both = instances.by_index(len(candidates_BD), candidates_BD.device)
            self.instances = of_both, of_both
        else:
            self.instances = instances.by_ids(of_queries, of_candidates)
        self.kernel_scale = _number(call.scale, candidates_BD.device)
        if call.objective.kernel == "soft_excess":
            everyone = range(len(candidates_BD))
            # One bias per pair serves both directions: d_i and the margin are those of the pair.
            # A scale in the exponents, not in the embeddings, which it would round once more.
            scale, self.bias_B = call.objective.exponents(call.whole.candidate_anchors(everyone))
            self.kernel_scale = self.kernel_scale * scale
        elif call.objective.kernel == "sigmoid":
            self.kernel_bias = _number(call.bias, candidates_BD.device)

    def statistics(self, rows: range, columns: range, known: Statistics | None) -> Statistics:
        """Return what the queries `rows` and the candidates `columns` (global) learn of each other in one pass."""
        if known is not None or not rows:
            return super().statistics(rows, columns, known)
        from allpairs.engine.fused import launches

        objective = self.call.objective
        if objective.kernel == "hardest":
            row_value, row_column, column_value, column_row = launches.hardest(
                self._operands(rows, Columns((columns,)))
            )
            return Statistics(
                objective.of_hardest(HardestNegative(row_value, row_column + columns.start)),
                objective.of_hardest(HardestNegative(column_value, column_row + rows.start)),
            )
        if objective.kernel == "sigmoid":
            row_total, row_slope, column_total, column_slope = launches.sigmoid_sums(
                self._operands(rows, Columns((columns,))), scale=self.kernel_scale, bias=self.kernel_bias
            )
            return Statistics(
                objective.of_sigmoids(row_total, row_slope), objective.of_sigmoids(column_total, column_slope)
            )
        row_peak, row_total, column_peak, column_total = launches.soft_excess(
            self._operands(rows, Columns((columns,))),
            scale=self.kernel_scale,
            row_bias_R=self.bias_B[rows.start : rows.stop],
            column_bias_C=self.bias_B[columns.start : columns.stop],
        )
        return Statistics(SoftExcess(row_peak, row_total), SoftExcess(column_peak, column_total))

    def begin_weights(self, statistics: Statistics) -> None:
        """Compute what is subtracted from the exponents of every anchor; in float16 less, so that W is lifted."""
        of_queries, of_candidates = statistics
        layout, half = self.call.layout, self.queries_bD.dtype == torch.float16
        own = layout.own_queries
        if self.call.objective.kernel == "sigmoid":
            if half and own:  # no weight is above 1, nor above what its anchor loses
                losses_b = self.call.objective.losses(self.call.whole.query_anchors(own), of_queries)
                self.unit = 2**12 / losses_b.amax().clamp(1e-30, 1.0)
            return
        assert isinstance(of_queries, SoftExcess)
        assert isinstance(of_candidates, SoftExcess)
        self.row_shift_b = self.bias_B[own.start : own.stop] + of_queries.value()
        self.column_shift_B = self.bias_B + of_candidates.value()
        if half:
            # W_ij is at most the sum of both anchors' shares: this makes it at most 2¹⁴, whatever lies below 6e-8.
            shares_N = torch.cat([of_queries.share_of_all(), of_candidates.share_of_all()])
            lift = (2**13 / shares_N.amax().clamp(min=1e-30)).log()
            self.row_shift_b -= lift
            self.column_shift_B -= lift
            self.unit = lift.exp()

    def weights(self, rows: range, columns: Columns, statistics: Statistics, factors: Factors) -> Tensor:
        """Return W [R, C] of the tile in the type of the embeddings, of a softmax but for the own pairs."""
        assert factors.unequal is None
        from allpairs.engine.fused import launches

        # Lines of a multiple of 16 numbers: the store is as wide for a ragged tile, and the kernel the same.
        line = len(columns) + -len(columns) % 16
        weights_RC = self.queries_bD.given.new_empty(len(rows), line)[:, : len(columns)]
        if rows and self.call.objective.kernel == "sigmoid":
            # Half of a pair's slope for either direction.
            launches.sigmoid_weights(
                self._operands(rows, columns),
                scale=self.kernel_scale,
                bias=self.kernel_bias,
                factor=_number((1 + factors.column) / 2 * self.unit, weights_RC.device),
                out=weights_RC,
            )
        elif rows:
            assert factors.column == 1
            launches.soft_weights(
                self._operands(rows, columns),
                scale=self.kernel_scale,
                row_shift_R=self.row_shift_b[self.local(rows)],
                column_shift_C=columns.of(self.column_shift_B),
                out=weights_RC,
            )
        return weights_RC

    def add_own_pairs(
        self, pairs: range, statistics: Statistics, query_gradient_PD: Tensor, candidate_gradient_PD: Tensor
    ) -> None:
        """Add `pairs` in float32: their weights are the largest, and are not to be rounded."""
        if self.call.objective.kernel == "sigmoid":
            return
        assert isinstance(statistics.queries, SoftExcess)
        assert isinstance(statistics.candidates, SoftExcess)
        for first in range(0, len(pairs), _CHUNK):
            some, inside = pairs[first : first + _CHUNK], slice(first, first + _CHUNK)
            cut, local = slice(some.start, some.stop), self.local(some)
            pull_P = statistics.queries.rows(local).share_of_all() + statistics.candidates.rows(cut).share_of_all()
            pull_P1 = (pull_P * self.unit)[:, None]
            query_gradient_PD[inside] -= pull_P1 * self.candidates_BD[cut]
            candidate_gradient_PD[inside] -= pull_P1 * self.queries_bD[local]

    def _operands(self, rows: range, columns: Columns) -> "launches.Operands":
        from allpairs.engine.fused import instances, launches

        of_queries, of_candidates = self.instances
        masked = self.by_ids or any(both(rows, part) for part in columns.ranges)
        first_column = columns.ranges[0].start
        if masked and len(columns.ranges) > 1:
            of_candidates, first_column = instances.Instances.of(columns.of(of_candidates.numbers)), 0
        return launches.Operands(
            self.queries_bD[self.local(rows)],
            columns.of(self.candidates_BD),
            of_queries,
            of_candidates,
            rows.start,
            first_column,
            masked,
        )


def _number(value: Tensor | float, device: torch.device) -> Tensor:
    """Return `value` as a kernel reads it, [1] float32, without waiting for the device."""
    if isinstance(value, Tensor):
        return value.detach().float().reshape(1)
    return torch.full((1,), value, dtype=torch.float32, device=device)


def _aligned(rows_bD: Rows) -> Rows:
    """Return `rows_bD` as the copy engine reads them: in one piece that begins at a multiple of 16 bytes."""
    if rows_bD.inverse is not None:  # pieces of them are made anew
        return rows_bD
    given_bD = in_one_piece(rows_bD.given)
    return rows_bD if given_bD is rows_bD.given else Rows(given_bD)
