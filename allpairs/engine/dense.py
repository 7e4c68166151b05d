"""The dense backend: the full score matrix and plain autograd. The truth every other backend is tested against.

Memory is O(b·B) per rank, a few times over. Shapes: b local pairs, B global pairs, D embedding.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from allpairs.engine.anchors import AnchorObjective, Anchors, anchors_of
from allpairs.engine.exchange import gather
from allpairs.engine.pairs import Pairs

if TYPE_CHECKING:
    import torch.distributed as dist


def loss(objective: AnchorObjective[Any], local: Pairs, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Return this rank's loss L_r, whose gradient averaged over the ranks is exactly that of one process on all pairs.

    The rank owns the anchors of its pairs: its queries against all candidates, its candidates against all queries.
    With N ranks and B global pairs, L_r = (N/B)·Σ_{i∈r} ℓ_i (mean) or N·Σ_{i∈r} ℓ_i (sum). The factor N meets the 1/N
    of DistributedDataParallel's averaging, for the encoder and for parameters of the objective alike.
    """
    everyone = gather(local, group)
    rows_bB = local.queries @ everyone.candidates.T
    columns_bB = rows_bB.T if everyone.ranks == 1 else local.candidates @ everyone.queries.T
    total = _sum_of_losses(
        objective,
        anchors_of(rows_bB, everyone.first, local.ids, everyone.ids, local.margins),
        anchors_of(columns_bB, everyone.first, local.ids, everyone.ids, local.margins),
    )
    return total * (everyone.ranks / _denominator(objective, len(everyone.queries)))


def loss_of_scores(
    objective: AnchorObjective[Any], scores_BB: Tensor, ids: Tensor | None, margins: Tensor | None
) -> Tensor:
    """Return the loss of a whole score matrix [B, B] on this process; differentiable in the scores."""
    total = _sum_of_losses(objective, *_both_directions(scores_BB, ids, margins))
    return total / _denominator(objective, len(scores_BB))


@torch.no_grad()
def weights_of_scores(
    objective: AnchorObjective[Any], scores_BB: Tensor, ids: Tensor | None, margins: Tensor | None
) -> Tensor:
    """Return W = ∂L/∂S [B, B] of a whole score matrix, from the objective's closed form."""
    rows, columns = _both_directions(scores_BB, ids, margins)
    weights_BB = objective.weights(rows, objective.statistic(rows))
    weights_BB = weights_BB + objective.weights(columns, objective.statistic(columns)).T
    return weights_BB / _denominator(objective, len(scores_BB))


def _sum_of_losses(objective: AnchorObjective[Any], rows: Anchors, columns: Anchors) -> Tensor:
    row_losses = objective.losses(rows, objective.statistic(rows))
    column_losses = objective.losses(columns, objective.statistic(columns))
    return row_losses.sum() + column_losses.sum()


def _both_directions(scores_BB: Tensor, ids: Tensor | None, margins: Tensor | None) -> tuple[Anchors, Anchors]:
    rows = anchors_of(scores_BB, 0, ids, ids, margins)
    columns = anchors_of(scores_BB.T, 0, ids, ids, margins)
    return rows, columns


def _denominator(objective: AnchorObjective[Any], pairs: int) -> int:
    return pairs if objective.reduction == "mean" else 1
