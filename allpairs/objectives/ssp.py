"""The self-similarity polynomial loss."""

from typing import ClassVar

import torch
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction
from allpairs.engine.statistics import HardestNegative
from allpairs.objectives.checks import number
from allpairs.objectives.hard_negative import Forces, OnHighestScore
from allpairs.objectives.polynomial import Coefficients, Polynomial

_PERFECT = 1 - 1e-5
"""A positive this similar is left alone, as in the released code."""


class SSP(OnHighestScore):
    """Universal weighting by polynomials of each pair's own similarity: f(i) = [P(d_i)]+ + [N(h_i)]+.

    Only where the hardest negative h_i = S_i,HN(i) violates the margin, h_i + m > d_i, and d_i < 1 − 10⁻⁵; else 0. The
    two clamps are separate. With the published N a hardest negative below 0.096 is pulled: there its clamp is open and
    N falls.

    Row statistic: the maximum over the negatives and its column.
    Pair weights: N′(h) for the hardest negative and P′(d) for the positive, each where its clamp is open.

    Source: Wei et al., CVPR 2020, with the polynomials of its released code; "SSP" of the Unified Loss.
    """

    takes_margins: ClassVar[bool] = True

    def __init__(
        self,
        *,
        margin: float = 0.2,
        positive: Coefficients = (0.5, -0.7, 0.2),
        negative: Coefficients = (0.03, -0.4, 0.9),
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)
        self.positive = Polynomial.of("positive", positive)
        self.negative = Polynomial.of("negative", negative)

    def losses(self, anchors: Anchors, statistic: HardestNegative) -> Tensor:
        """Return both clamped polynomials of the anchors that mining keeps."""
        mined_R, hardest_R = self._mined(anchors, statistic)
        loss_R = self.positive.value(anchors.own).relu() + self.negative.value(hardest_R).relu()
        return torch.where(mined_R, loss_R, 0)

    def forces(self, anchors: Anchors, statistic: HardestNegative) -> Forces:
        """Return the slopes of the polynomials where their clamps are open."""
        mined_R, hardest_R = self._mined(anchors, statistic)
        push_R = self.negative.slope(hardest_R) * (mined_R & (self.negative.value(hardest_R) > 0))
        pull_R = -self.positive.slope(anchors.own) * (mined_R & (self.positive.value(anchors.own) > 0))
        return Forces(push_R, pull_R)

    def _mined(self, anchors: Anchors, statistic: HardestNegative) -> tuple[Tensor, Tensor]:
        """Return which anchors take part, and h with 0 for an anchor without negatives."""
        mined_R = (statistic.value > anchors.threshold(self.margin)) & (anchors.own < _PERFECT)
        return mined_R, statistic.value.where(statistic.exists(), 0)
