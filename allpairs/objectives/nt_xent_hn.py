"""The softmax contrastive loss on the hardest negative of a batch."""

import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction
from allpairs.engine.statistics import HardestNegative
from allpairs.objectives.checks import positive_number
from allpairs.objectives.hard_negative import Forces, OnHighestScore


class NTXentHN(OnHighestScore):
    """NT-Xent with the hardest negative alone: f(i) = log(1 + e^{τ(S_i,HN(i) − d_i)}).

    Row statistic: the maximum over the negatives and its column.
    Pair weights: τ·σ(τ(h − d)) for the hardest negative, minus that for the positive.

    Source: G-Eq. 6 (GOAL).
    """

    def __init__(self, *, tau: float = 10.0, reduction: Reduction = "mean", normalize: bool = True) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.tau = positive_number("tau", tau)

    @property
    def constant_factor(self) -> float:
        """τ, which counting leaves out."""
        return self.tau

    def losses(self, anchors: Anchors, statistic: HardestNegative) -> Tensor:
        """Return the softplus of the violation."""
        return -F.logsigmoid(-self._exponent(anchors, statistic))

    def forces(self, anchors: Anchors, statistic: HardestNegative) -> Forces:
        """Return τ·σ(τ(h − d)), twice."""
        force_R = self.tau * self._exponent(anchors, statistic).sigmoid()
        return Forces(force_R, force_R)

    def _exponent(self, anchors: Anchors, statistic: HardestNegative) -> Tensor:
        return self.tau * (statistic.value - anchors.own)
