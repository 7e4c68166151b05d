"""Binomial deviance across modalities."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction, Tile
from allpairs.engine.statistics import RowStatistic, Summed
from allpairs.objectives.base import PositivesByIds
from allpairs.objectives.checks import number, positive_number


@dataclass(frozen=True)
class Deviances(RowStatistic):
    """Sums and counts over an anchor's positives and over its negatives, [R] each."""

    positive_total: Summed
    positive_count: Summed
    negative_total: Summed
    negative_count: Summed


class BinomialDeviance(PositivesByIds[Deviances]):
    """Binomial deviance: f(i) = mean_p log(1 + e^{−α(s_p − λ)}) + mean_n log(1 + e^{β(s_n − λ)}).

    The mean over an empty set is 0.

    Row statistic: the sums and counts of both sets.
    Pair weights: β·σ(β(s_n − λ))/|n| for a negative, −α·σ(−α(s_p − λ))/|p| for a positive.

    Source: Yi et al. 2014 (arXiv 1407.4979), with the constants of Ustinova and Lempitsky 2016; named in GOAL.
    """

    needs_negatives: ClassVar[bool] = False

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 40.0,
        threshold: float = 0.5,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.alpha = positive_number("alpha", alpha)
        self.beta = positive_number("beta", beta)
        self.threshold = number("threshold", threshold, -1, 1)

    def statistic(self, tile: Tile, known: Deviances | None) -> Deviances:
        """Sum and count both sets."""
        excess_RC = tile.scores - self.threshold
        one_RC = torch.ones_like(tile.scores)
        return Deviances(
            tile.mask_positives(-F.logsigmoid(self.alpha * excess_RC), fill=0).sum(dim=1),
            tile.mask_positives(one_RC, fill=0).sum(dim=1),
            tile.mask_negatives(-F.logsigmoid(-self.beta * excess_RC), fill=0).sum(dim=1),
            tile.mask_negatives(one_RC, fill=0).sum(dim=1),
        )

    def losses(self, anchors: Anchors, statistic: Deviances) -> Tensor:
        """Return the sum of both means."""
        pull_R = statistic.positive_total / statistic.positive_count.clamp(min=1)
        return pull_R + statistic.negative_total / statistic.negative_count.clamp(min=1)

    def weights(self, tile: Tile, statistic: Deviances) -> Tensor:
        """Return the slopes of both deviances over the counts."""
        excess_RC = tile.scores - self.threshold
        negatives_R1 = statistic.negative_count.clamp(min=1)[:, None]
        push_RC = tile.mask_negatives(self.beta * torch.sigmoid(self.beta * excess_RC) / negatives_R1, fill=0)
        if tile.is_positive is None:
            return push_RC
        positives_R1 = statistic.positive_count.clamp(min=1)[:, None]
        pull_RC = tile.mask_positives(self.alpha * torch.sigmoid(-self.alpha * excess_RC) / positives_R1, fill=0)
        return push_RC - pull_RC
