"""The unified loss of pair similarity optimisation: contrastive learning with a margin and weighted similarities."""

from typing import ClassVar

from torch import Tensor

from allpairs.engine.anchors import Anchors, Exponents, Tile
from allpairs.engine.row_statistics import SoftExcess
from allpairs.objectives.base import OwnPair, Reduction
from allpairs.objectives.checks import flag, number, positive_number
from allpairs.objectives.polynomial import Coefficients
from allpairs.objectives.weighting import PulledExcess, Scheme, Weighting, scheme


class Unified(OwnPair[SoftExcess]):
    """Unified loss: f(i) = (1/γ) log(1 + Σ_{j∈N(i)} e^{γ(w_ij·S_ij − w_ii·d_i + m)}), with margin m and scale γ.

    With `weighting="none"` all w are 1; γ → ∞ then gives `triplet_hn` (U-Eq. 6; apart by at most log(B)/γ per anchor),
    m = 0 gives `vlc`/γ (U-Eq. 7). `margins=` at the call gives each pair its own m_i (U-Eq. 26). The schemes are those
    of `allpairs.objectives.weighting`; `detach_weights=False` lets gradients flow through the weights too.
    `positive` and `negative` are the polynomials of the scheme "ssp", `coefficients` that of "rsp".

    Row statistic: log(1 + Σ_j e^{x_ij}) with x_ij = γ(w_ij·S_ij − w_ii·d_i + m), as peak and sum; with a scheme also
    Σ_j e^{x_ij}·∂x_ij/∂d_i.
    Pair weights: p_ij = e^{x_ij} / (1 + Σ_k e^{x_ik}) for a negative, −Σ_j p_ij for the positive, times the slopes of
    the weighted similarities. (The denominator printed in U-Eq. 15 lacks the 1.)

    Source: U-Eq. 5, 24 and 26 (Unified Loss). Published scales: 60 for VSE++, 50 for the other models.
    """

    takes_margins: ClassVar[bool] = True

    def __init__(
        self,
        *,
        margin: float = 0.2,
        scale: float = 60.0,
        weighting: Weighting = "none",
        positive: Coefficients = (0.5, -0.7, 0.2),
        negative: Coefficients = (0.03, -0.4, 0.9),
        coefficients: Coefficients = (1.0, 0.0, 0.0),
        detach_weights: bool = True,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)
        self.scale = positive_number("scale", scale)
        self.scheme: Scheme | None = scheme(weighting, positive, negative, coefficients)
        self.detach_weights = flag("detach_weights", detach_weights)
        self.kernel = "soft_excess" if self.scheme is None else None

    def statistic(self, tile: Tile, known: SoftExcess | None) -> SoftExcess:
        """Sum the exponentials of each row."""
        if self.scheme is None:
            return SoftExcess.of(self._exponents(tile))
        anchors = tile.anchors
        weighted = self.scheme.weigh(tile.scores, anchors.own, self.detach_weights)
        exponents_RC = tile.mask_negatives(self.scale * (weighted.excess + self._margin(anchors)))
        return PulledExcess.of_pull(exponents_RC, weighted.pull)

    def losses(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return the soft maximum of the margin violations and 0."""
        return statistic.value() / self.scale

    def push(self, tile: Tile, statistic: SoftExcess) -> Tensor:
        """Return p_ij, times the slope of the weighted S_ij."""
        if self.scheme is None:
            return statistic.share(self._exponents(tile))
        weighted = self.scheme.weigh(tile.scores, tile.anchors.own, self.detach_weights)
        exponents_RC = tile.mask_negatives(self.scale * (weighted.excess + self._margin(tile.anchors)))
        return statistic.share(exponents_RC) * weighted.push

    def pull(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return Σ_j p_ij, times the slope of the weighted d_i."""
        return statistic.share_of_pull() if isinstance(statistic, PulledExcess) else statistic.share_of_all()

    def exponents(self, anchors: Anchors) -> Exponents:
        """Return γ(S_ij − d_i + m)."""
        return Exponents(self.scale, self.scale * anchors.threshold(self.margin))

    def _exponents(self, tile: Tile) -> Tensor:
        return tile.mask_negatives(self.scale * (tile.scores - tile.anchors.threshold(self.margin)[:, None]))

    def _margin(self, anchors: Anchors) -> Tensor | float:
        return self.margin if anchors.margin is None else anchors.margin[:, None]
