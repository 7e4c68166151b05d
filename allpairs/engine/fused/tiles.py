"""The triton backend's tiles: scores and what follows from them in one kernel, so that no score is ever stored.

The walk, the exchange between ranks and the products with W are those of `allpairs.engine.tiled`; W is stored in the
type of the embeddings. Products of half precision are accumulated in float32, as are all statistics.

Shapes: b local queries, B candidates of all ranks, D embedding, R × C a tile.
"""

import torch
from torch import Tensor

from allpairs.engine.statistics import HardestNegative, SoftExcess
from allpairs.engine.tiled import PlainTiles, Statistics, TiledCall

_CHUNK = 4096
"""Pairs at a time in the passes over own pairs."""


class FusedTiles(PlainTiles):
    """Tiles of objectives with a `kernel`. Embeddings [*, D] with D a multiple of 16."""

    def __init__(self, call: TiledCall, candidates_BD: Tensor) -> None:
        super().__init__(call._replace(queries_bD=call.queries_bD.contiguous()), candidates_BD.contiguous())
        everyone = range(len(candidates_BD))
        # Without ids a pair's own index is its id: the kernels then need no other rule for what is no negative.
        ids_B = torch.arange(len(candidates_BD), device=candidates_BD.device)
        ids = call.whole.ids.queries  # of one id per pair
        if ids is not None:
            # The lowest index of each instance: ids that follow the batch let the kernels pass over most blocks.
            _, instance_B = ids.unique(return_inverse=True)
            first = torch.full_like(ids_B, len(ids_B)).scatter_reduce_(0, instance_B, ids_B, "amin")
            ids_B = first[instance_B]
        self.ids_B = ids_B
        if call.objective.kernel == "soft_excess":
            # One bias per pair serves both directions: d_i and the margin are those of the pair.
            # A scale in the exponents, not in the embeddings, which it would round once more.
            scale, self.bias_B = call.objective.exponents(call.whole.candidate_anchors(everyone))
            self.kernel_scale = scale * float(call.scale)

    def statistics(self, rows: range, columns: range, known: Statistics | None) -> Statistics:
        """Return what the queries `rows` and the candidates `columns` (global) learn of each other in one pass."""
        if known is not None or not rows:
            return super().statistics(rows, columns, known)
        from allpairs.engine.fused import launches

        if self.objective.kernel == "hardest":
            row_value, row_column, column_value, column_row = launches.hardest(*self._operands(rows, columns))
            return Statistics(
                self.objective.of_hardest(HardestNegative(row_value, row_column + columns.start)),
                self.objective.of_hardest(HardestNegative(column_value, column_row + rows.start)),
            )
        row_peak, row_total, column_peak, column_total = launches.soft_excess(
            *self._operands(rows, columns),
            scale=self.kernel_scale,
            row_bias_R=self.bias_B[rows.start : rows.stop],
            column_bias_C=self.bias_B[columns.start : columns.stop],
        )
        return Statistics(SoftExcess(row_peak, row_total), SoftExcess(column_peak, column_total))

    def weights(self, rows: range, columns: range, statistics: Statistics, column_factor: float) -> Tensor:
        """Return W [R, C] of the tile in the type of the embeddings, but for the own pairs."""
        assert column_factor == 1
        from allpairs.engine.fused import launches

        local_rows = slice(rows.start - self.first_query, rows.stop - self.first_query)
        of_rows, of_columns = (
            statistics.queries.rows(local_rows),
            statistics.candidates.rows(slice(columns.start, columns.stop)),
        )
        assert isinstance(of_rows, SoftExcess)
        assert isinstance(of_columns, SoftExcess)
        weights_RC = self.queries_bD.new_empty(len(rows), len(columns))
        if not rows:
            return weights_RC
        launches.soft_weights(
            *self._operands(rows, columns),
            scale=self.kernel_scale,
            row_shift_R=self.bias_B[rows.start : rows.stop] + of_rows.value(),
            column_shift_C=self.bias_B[columns.start : columns.stop] + of_columns.value(),
            out=weights_RC,
        )
        return weights_RC

    def add_own_pairs(
        self, rows: range, statistics: Statistics, query_gradient_RD: Tensor, candidate_gradient_BD: Tensor
    ) -> None:
        """Add the own pairs of `rows`, in float32: their weights are the largest, and are not to be rounded."""
        assert isinstance(statistics.queries, SoftExcess)
        assert isinstance(statistics.candidates, SoftExcess)
        for first in range(rows.start, rows.stop, _CHUNK):
            own = slice(first, min(first + _CHUNK, rows.stop))
            local = slice(own.start - self.first_query, own.stop - self.first_query)
            inside = slice(own.start - rows.start, own.stop - rows.start)
            pull_P = statistics.queries.rows(local).share_of_all() + statistics.candidates.rows(own).share_of_all()
            query_gradient_RD[inside] -= pull_P[:, None] * self.candidates_BD[own]
            candidate_gradient_BD[own] -= pull_P[:, None] * self.queries_bD[local]

    def _operands(self, rows: range, columns: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        local_rows = slice(rows.start - self.first_query, rows.stop - self.first_query)
        cut = slice(columns.start, columns.stop)
        return (
            self.queries_bD[local_rows],
            self.candidates_BD[cut],
            self.ids_B[rows.start : rows.stop],
            self.ids_B[cut],
        )
