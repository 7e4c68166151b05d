"""The dense backend: the full score matrix and plain autograd. The truth every other backend is tested against.

Memory is O(b·B) per rank, a few times over. Shapes: bq, bc local queries and candidates, Bq, Bc those of all ranks,
D embedding, R anchors.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from allpairs.engine.anchors import AnchorObjective, Tile
from allpairs.engine.batch import Sides, mean_factors, sides_of
from allpairs.engine.exchange import Layout, gather
from allpairs.engine.pairs import Share
from allpairs.engine.sides import tile_between, with_own_scores
from allpairs.engine.statistic import RowStatistic


def loss(objective: AnchorObjective[Any], share: Share, layout: Layout) -> Tensor:
    """Return this rank's loss L_r, whose gradient averaged over the ranks is exactly that of one process on all pairs.

    The rank owns the anchors of its rows: its queries against all candidates, its candidates against all queries.
    With N ranks and B anchors of a side, L_r = (N/B)·Σ_{i∈r} ℓ_i (mean) or N·Σ_{i∈r} ℓ_i (sum). The factor N meets the
    1/N of DistributedDataParallel's averaging, for the encoder and for parameters of the objective alike.
    """
    sides = sides_of(objective, share, layout)
    share = share._replace(queries=share.queries * objective.score_scale())
    all_queries_BD = gather(share.queries, layout.query_counts, layout.group)
    all_candidates_BD = gather(share.candidates, layout.candidate_counts, layout.group)
    rows_bB = share.queries @ all_candidates_BD.T
    columns_bB = rows_bB.T if layout.ranks == 1 else share.candidates @ all_queries_BD.T
    own = objective.own_positive
    everyone = layout.all_queries, layout.all_candidates
    row_tile = tile_between(rows_bB, sides.queries, layout.own_queries, sides.candidates, everyone[1], own=own)
    column_tile = tile_between(columns_bB, sides.candidates, layout.own_candidates, sides.queries, everyone[0], own=own)
    if own:
        row_tile = with_own_scores(row_tile, layout.own_queries)
        column_tile = with_own_scores(column_tile, layout.own_candidates)
    query_factor, candidate_factor = mean_factors(objective, len(layout.all_queries), len(layout.all_candidates))
    total = query_factor * _sum_of_losses(objective, row_tile) + candidate_factor * _sum_of_losses(
        objective, column_tile
    )
    return total * layout.ranks


def loss_of_scores(objective: AnchorObjective[Any], scores_BB: Tensor, sides: Sides) -> Tensor:
    """Return the loss of a whole score matrix [Bq, Bc] on this process; differentiable in the scores."""
    rows, columns = _both_directions(objective, scores_BB, sides)
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
def weights_of_scores(objective: AnchorObjective[Any], scores_BB: Tensor, sides: Sides) -> PairWeights:
    """Return the weights of a whole score matrix [Bq, Bc] from the objective's closed form."""
    rows, columns = _both_directions(objective, scores_BB, sides)
    query_factor, candidate_factor = mean_factors(objective, *scores_BB.shape)
    return PairWeights(
        query_factor * objective.weights(rows, statistic_of_row(objective, rows)),
        candidate_factor * objective.weights(columns, statistic_of_row(objective, columns)).T,
    )


def statistic_of_row(objective: AnchorObjective[Any], tile: Tile) -> RowStatistic:
    """Return the statistic of anchors whose whole row is one tile; differentiable."""
    statistic = None
    for _ in range(objective.passes):
        statistic = objective.statistic(tile, statistic)
    assert statistic is not None
    return statistic


def _sum_of_losses(objective: AnchorObjective[Any], tile: Tile) -> Tensor:
    return objective.losses(tile.anchors, statistic_of_row(objective, tile)).sum()


def _both_directions(objective: AnchorObjective[Any], scores_BB: Tensor, sides: Sides) -> tuple[Tile, Tile]:
    queries, candidates = (range(count) for count in scores_BB.shape)
    own = objective.own_positive
    rows = tile_between(scores_BB, sides.queries, queries, sides.candidates, candidates, own=own)
    columns = tile_between(scores_BB.T, sides.candidates, candidates, sides.queries, queries, own=own)
    return (with_own_scores(rows, queries), with_own_scores(columns, candidates)) if own else (rows, columns)
