"""The triplet loss on the hardest negative of a batch."""

from typing import ClassVar

import torch
from torch import Tensor

from allpairs.engine.anchors import Anchors
from allpairs.objectives.base import PairObjective, Reduction
from allpairs.objectives.checks import number
from allpairs.objectives.row_statistics import HardestNegative


class TripletHN(PairObjective[HardestNegative]):
    """Triplet loss with online hard negatives: f(i) = [m + S_i,HN(i) − d_i]+, HN(i) = argmax_{j∈N(i)} S_ij.

    On a tie the negative with the lowest global index is the hardest and alone gets the gradient. U-Eq. 2 prints max
    where the index is meant; it is read as argmax.

    Row statistic: the maximum over the negatives and its column.
    Pair weights: 1 for the hardest negative and −1 for the positive, where the hinge is active.

    Source: U-Eq. 1 and 2 (Unified Loss); VSE++ (Faghri et al. 2018); "Triplet SH" of COCOS.
    """

    takes_margins: ClassVar[bool] = True

    def __init__(self, *, margin: float = 0.2, reduction: Reduction = "mean", normalize: bool = True) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)

    def statistic(self, anchors: Anchors) -> HardestNegative:
        """Find the hardest negative of each row."""
        return HardestNegative.of(anchors.mask_negatives(anchors.scores))

    def losses(self, anchors: Anchors, statistic: HardestNegative) -> Tensor:
        """Return the hinge on the hardest negative."""
        return (statistic.value - anchors.threshold(self.margin)).relu()

    def weights(self, anchors: Anchors, statistic: HardestNegative) -> Tensor:
        """Return ±1 for the hardest negative and the positive of each active anchor."""
        active_R = (self.losses(anchors, statistic) > 0).to(anchors.scores)
        push_RC = torch.zeros_like(anchors.scores).scatter(1, statistic.column[:, None], active_R[:, None])
        return torch.where(anchors.is_positive, -active_R[:, None], push_RC)
