"""The unified loss of pair similarity optimisation: contrastive learning with a margin."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from allpairs.engine.anchors import Anchors
from allpairs.objectives.base import PairObjective, Reduction
from allpairs.objectives.checks import choice, number, positive_number
from allpairs.objectives.row_statistics import SoftExcess

Weighting = Literal["none"]


class Unified(PairObjective[SoftExcess]):
    """Unified loss: f(i) = (1/γ) log(1 + Σ_{j∈N(i)} e^{γ(S_ij − d_i + m)}), with margin m and scale γ.

    γ → ∞ gives `triplet_hn` (U-Eq. 6; apart by at most log(B)/γ per anchor), m = 0 gives `vlc`/γ (U-Eq. 7).
    `margins=` at the call gives each pair its own m_i (U-Eq. 26).

    Row statistic: log(1 + Σ_j e^{x_ij}) with x_ij = γ(S_ij − d_i + m), as peak and sum.
    Pair weights: p_ij = e^{x_ij} / (1 + Σ_k e^{x_ik}) for a negative, −Σ_j p_ij for the positive. (The denominator
    printed in U-Eq. 15 lacks the 1.)

    Source: U-Eq. 5 and 26 (Unified Loss). Published scales: 60 for VSE++, 50 for the other models.
    """

    takes_margins: ClassVar[bool] = True

    def __init__(
        self,
        *,
        margin: float = 0.2,
        scale: float = 60.0,
        weighting: Weighting = "none",
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)
        self.scale = positive_number("scale", scale)
        self.weighting = choice("weighting", weighting, get_args(Weighting))

    def statistic(self, anchors: Anchors) -> SoftExcess:
        """Sum the exponentials of each row."""
        return SoftExcess.of(self._exponents(anchors))

    def losses(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return the soft maximum of the margin violations and 0."""
        return statistic.value() / self.scale

    def weights(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return p_ij, and −Σ_j p_ij for the positive."""
        push_RC = statistic.share(self._exponents(anchors))
        return torch.where(anchors.is_positive, -statistic.share_of_all()[:, None], push_RC)

    def _exponents(self, anchors: Anchors) -> Tensor:
        return anchors.mask_negatives(self.scale * (anchors.scores - anchors.threshold(self.margin)[:, None]))
