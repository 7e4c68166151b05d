"""Circle loss across modalities."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction, Tile
from allpairs.engine.statistics import RowStatistic, SumOfExponentials
from allpairs.objectives.base import PositivesByIds
from allpairs.objectives.checks import number, positive_number


@dataclass(frozen=True)
class BothSums(RowStatistic):
    """Sums of exponentials over an anchor's positives and over its negatives."""

    positives: SumOfExponentials
    negatives: SumOfExponentials


class Circle(PositivesByIds[BothSums]):
    """Circle loss: f(i) = log(1 + Σ_n e^{γ·a_n(s_n − m)} · Σ_p e^{−γ·a_p(s_p − 1 + m)}).

    a_n = [s_n + m]+ and a_p = [1 + m − s_p]+ are constants for the gradient. An anchor without positives or without
    negatives has the loss 0.

    Row statistic: the log-sum-exp over the positives and that over the negatives.
    Pair weights: with z their sum, σ(z)·γ·a_n times the negative's share of its sum, −σ(z)·γ·a_p times the positive's.

    Source: Sun et al. 2020 (arXiv 2002.10857), Eq. 4 to 6; named in GOAL.
    """

    def __init__(
        self, *, margin: float = 0.25, scale: float = 256.0, reduction: Reduction = "mean", normalize: bool = True
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)
        self.scale = positive_number("scale", scale)

    def statistic(self, tile: Tile, known: BothSums | None) -> BothSums:
        """Sum the exponentials of both sets."""
        positives_RC, negatives_RC = self._exponents(tile)
        return BothSums(SumOfExponentials.of(positives_RC), SumOfExponentials.of(negatives_RC))

    def losses(self, anchors: Anchors, statistic: BothSums) -> Tensor:
        """Return the softplus of the sum of both logarithms."""
        return -F.logsigmoid(-(statistic.negatives.log() + statistic.positives.log()))

    def weights(self, tile: Tile, statistic: BothSums) -> Tensor:
        """Return the forces on negatives and positives."""
        positives_RC, negatives_RC = self._exponents(tile)
        force_R1 = self.scale * torch.sigmoid(statistic.negatives.log() + statistic.positives.log())[:, None]
        push_RC = statistic.negatives.share(negatives_RC) * (tile.scores + self.margin).relu()
        if tile.is_positive is None:
            return force_R1 * push_RC
        pull_RC = statistic.positives.share(positives_RC) * (1 + self.margin - tile.scores).relu()
        return force_R1 * (push_RC - pull_RC)

    def _exponents(self, tile: Tile) -> tuple[Tensor, Tensor]:
        scores_RC, fixed_RC = tile.scores, tile.scores.detach()
        positives_RC = -self.scale * (1 + self.margin - fixed_RC).relu() * (scores_RC - 1 + self.margin)
        negatives_RC = self.scale * (fixed_RC + self.margin).relu() * (scores_RC - self.margin)
        return tile.mask_positives(positives_RC), tile.mask_negatives(negatives_RC)
