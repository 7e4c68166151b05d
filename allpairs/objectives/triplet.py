"""The sum-of-hinges triplet loss over all negatives of a batch."""

from typing import ClassVar

import torch
from torch import Tensor

from allpairs.engine.anchors import Anchors
from allpairs.objectives.base import PairObjective, Reduction
from allpairs.objectives.checks import number
from allpairs.objectives.row_statistics import HingeSum


class Triplet(PairObjective[HingeSum]):
    """Triplet loss: every negative within the margin pushes, f(i) = Σ_{j∈N(i)} [m + S_ij − d_i]+.

    Row statistic: Σ_j [m + S_ij − d_i]+ and the number of active negatives.
    Pair weights: 1 for each active negative, −(their number) for the positive.

    Source: Kiros et al. 2014 (arXiv 1411.2539); "Triplet" of COCOS (§3.1).
    """

    takes_margins: ClassVar[bool] = True

    def __init__(self, *, margin: float = 0.2, reduction: Reduction = "mean", normalize: bool = True) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)

    def statistic(self, anchors: Anchors) -> HingeSum:
        """Sum the hinges of each row."""
        return HingeSum.of(self._excess(anchors))

    def losses(self, anchors: Anchors, statistic: HingeSum) -> Tensor:
        """Return the sum of hinges."""
        return statistic.total

    def weights(self, anchors: Anchors, statistic: HingeSum) -> Tensor:
        """Return 1 per active negative and −(their number) for the positive."""
        push_RC = (self._excess(anchors) > 0).to(anchors.scores)
        pull_R = -statistic.active.to(anchors.scores)
        return torch.where(anchors.is_positive, pull_R[:, None], push_RC)

    def _excess(self, anchors: Anchors) -> Tensor:
        return anchors.mask_negatives(anchors.scores - anchors.threshold(self.margin)[:, None])
