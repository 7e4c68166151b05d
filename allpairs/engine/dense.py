"""The dense backend: the full score matrix and plain autograd. The truth every other backend is tested against.

Memory is O(b·B) per rank, a few times over. Shapes: bq, bc local queries and candidates, Bq, Bc those of all ranks,
D embedding, R anchors.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from allpairs.engine.batch import LocalBatch
from allpairs.engine.contract import AnchorObjective, Tile, biased
from allpairs.engine.exchange import RankLayout, gather
from allpairs.engine.global_batch import GlobalBatch, mean_factors, with_own_scores
from allpairs.engine.products import scores_of


def loss(objective: AnchorObjective[Any], batch: LocalBatch, layout: RankLayout) -> Tensor:
    """Return this rank's loss L_r, whose gradient averaged over the ranks is exactly that of one process on all pairs.

    The rank owns the anchors of its rows: its queries against all candidates, its candidates against all queries.
    With N ranks and B anchors of a side, L_r = (N/B)·Σ_{i∈r} f(i) (mean) or N·Σ_{i∈r} f(i) (sum). The factor N meets
    the 1/N of DistributedDataParallel's averaging, for the encoder and for parameters of the objective alike.
    """
    whole = GlobalBatch.gathered(objective, batch, layout)
    scaled_bD = batch.queries * objective.score_scale()
    all_queries_BD = gather(scaled_bD, layout.query_counts, layout.group)
    all_candidates_BD = gather(batch.candidates, layout.candidate_counts, layout.group)
    bias = objective.score_bias()
    rows_bB = biased(scores_of(scaled_bD, all_candidates_BD), bias)
    columns_bB = rows_bB.T if layout.world_size == 1 else biased(scores_of(batch.candidates, all_queries_BD), bias)
    row_tile = whole.query_tile(rows_bB, layout.own_queries, layout.all_candidates)
    column_tile = whole.candidate_tile(columns_bB, layout.own_candidates, layout.all_queries)
    if objective.own_positive:
        row_tile = with_own_scores(row_tile, layout.own_queries)
        column_tile = with_own_scores(column_tile, layout.own_candidates)
    query_factor, candidate_factor = mean_factors(objective, len(layout.all_queries), len(layout.all_candidates))
    of_queries, of_candidates = (_sum_of_losses(objective, tile) for tile in (row_tile, column_tile))
    return (query_factor * of_queries + candidate_factor * of_candidates) * layout.world_size


def loss_of_scores(objective: AnchorObjective[Any], scores_BB: Tensor, whole: GlobalBatch) -> Tensor:
    """Return the loss of a whole score matrix [Bq, Bc] on this process; differentiable in the scores."""
    rows, columns = both_tiles(objective, scores_BB, whole)
    query_factor, candidate_factor = mean_factors(objective, *scores_BB.shape)
    return query_factor * _sum_of_losses(objective, rows) + candidate_factor * _sum_of_losses(objective, columns)


class PairWeights(NamedTuple):
    """∂L/∂S [Bq, Bc], by the direction whose anchors ask for it."""

    of_rows: Tensor
    of_columns: Tensor

    def of(self, direction: str) -> Tensor:
        """Return the weights of the "rows", the "columns" or "both" as anchors."""
        return self.of_rows + self.of_columns if direction == "both" else getattr(self, f"of_{direction}")


@torch.no_grad()
def weights_of_scores(objective: AnchorObjective[Any], scores_BB: Tensor, whole: GlobalBatch) -> PairWeights:
    """Return the weights of a whole score matrix [Bq, Bc] from the objective's closed form."""
    rows, columns = both_tiles(objective, scores_BB, whole)
    query_factor, candidate_factor = mean_factors(objective, *scores_BB.shape)
    return PairWeights(
        query_factor * objective.weights(rows, objective.statistic_of_row(rows)),
        candidate_factor * objective.weights(columns, objective.statistic_of_row(columns)).T,
    )


def both_tiles(objective: AnchorObjective[Any], scores_BB: Tensor, whole: GlobalBatch) -> tuple[Tile, Tile]:
    """Return a whole score matrix [Bq, Bc] as the queries see it as anchors, and as the candidates do."""
    queries, candidates = (range(count) for count in scores_BB.shape)
    rows = whole.query_tile(scores_BB, queries, candidates)
    columns = whole.candidate_tile(scores_BB.T, candidates, queries)
    if objective.own_positive:
        rows, columns = with_own_scores(rows, queries), with_own_scores(columns, candidates)
    return rows, columns


def _sum_of_losses(objective: AnchorObjective[Any], tile: Tile) -> Tensor:
    return objective.losses(tile.anchors, objective.statistic_of_row(tile)).sum()
