"""The triplet loss on the hardest negative of a batch."""

from typing import ClassVar

from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction
from allpairs.engine.statistics import HardestNegative
from allpairs.objectives.checks import number
from allpairs.objectives.hard_negative import Forces, OnHighestScore


class TripletHN(OnHighestScore):
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

    def losses(self, anchors: Anchors, statistic: HardestNegative) -> Tensor:
        """Return the hinge on the hardest negative."""
        return (statistic.value - anchors.threshold(self.margin)).relu()

    def forces(self, anchors: Anchors, statistic: HardestNegative) -> Forces:
        """Return 1 and 1 for each active anchor."""
        active_R = (self.losses(anchors, statistic) > 0).to(anchors.own)
        return Forces(active_R, active_R)
