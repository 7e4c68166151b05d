"""The unified loss of pair similarity optimisation: contrastive learning with a margin and weighted similarities."""

from typing import ClassVar, get_args

from torch import Tensor

from allpairs.engine.contract import Anchors, Exponents, Family, Reduction, Tile
from allpairs.engine.statistics import SoftExcess
from allpairs.objectives.base import OwnPair
from allpairs.objectives.checks import choice, flag, number, positive_number
from allpairs.objectives.polynomial import Coefficients, Polynomial
from allpairs.objectives.weighting import (
    Linear,
    PulledExcess,
    RelativeSimilarity,
    Scheme,
    SelfSimilarity,
    Sigmoid,
    Weighted,
    Weighting,
)


class Unified(OwnPair[SoftExcess]):
    """Unified loss: f(i) = (1/γ) log(1 + Σ_{j∈N(i)} e^{γ(w_ij·S_ij − w_ii·d_i + m)}), with margin m and scale γ.

    With `weighting="none"` all w are 1; γ → ∞ then gives `triplet_hn` (U-Eq. 6; apart by at most log(B)/γ per anchor),
    m = 0 gives `vlc`/γ (U-Eq. 7). `margins=` at the call gives each pair its own m_i (U-Eq. 26).

    `weighting` (`allpairs.objectives.weighting`): "linear", w_ij = S_ij within [0, 1] and w_ii = 2 − d_i; "sigmoid",
    w_ij = σ(β(S_ij − λ)) and w_ii = σ(−α(d_i − λ)) with `alpha`, `beta`, `threshold`; for both `detach_weights=False`
    lets gradients flow through the weights too (a sigmoid's positives are then pushed above 0.784). "ssp" and "rsp" put
    polynomials in the place of the difference, and are always differentiated through: "ssp" G_neg(S_ij) + G_pos(d_i)
    with `negative` and `positive` (γ → ∞ gives the objective `ssp` where its clamps are open; negatives below 2/9 are
    pulled by the published G_neg), "rsp" G_rel(S_ij − d_i) with `coefficients` (γ → ∞ gives the objective `rsp`).

    Row statistic: log(1 + Σ_j e^{x_ij}) with x_ij the exponent above, as peak and sum; with a scheme also
    Σ_j e^{x_ij}·∂x_ij/∂d_i.
    Pair weights: p_ij = e^{x_ij} / (1 + Σ_k e^{x_ik}) for a negative, −Σ_j p_ij for the positive, times the slopes of
    the weighted similarities. (The denominator printed in U-Eq. 15 lacks the 1.)

    Source: U-Eq. 5, 24, 25 and 26 (Unified Loss). Published scales: 60 for VSE++, 50 for the other models. The paper
    sums over anchors: `reduction="sum"` is faithful to its clipping of gradients.
    """

    takes_margins: ClassVar[bool] = True
    family: ClassVar[Family] = "softmax"

    def __init__(
        self,
        *,
        margin: float = 0.2,
        scale: float = 60.0,
        weighting: Weighting = "none",
        alpha: float = 2.0,
        beta: float = 10.0,
        threshold: float = 0.5,
        positive: Coefficients = (0.5, -0.7, 0.2),
        negative: Coefficients = (0.03, -0.4, 0.9),
        coefficients: Coefficients = (0.0, 1.0, 0.0),
        detach_weights: bool = True,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)
        self.scale = positive_number("scale", scale)
        schemes: dict[str, Scheme | None] = {
            "none": None,
            "linear": Linear(),
            "sigmoid": Sigmoid(
                positive_number("alpha", alpha), positive_number("beta", beta), number("threshold", threshold, -1, 1)
            ),
            "ssp": SelfSimilarity(Polynomial.of("positive", positive), Polynomial.of("negative", negative)),
            "rsp": RelativeSimilarity(Polynomial.of("coefficients", coefficients)),
        }
        self.scheme = schemes[choice("weighting", weighting, get_args(Weighting))]
        self.detach_weights = flag("detach_weights", detach_weights)
        self.kernel = "soft_excess" if self.scheme is None else None

    def statistic(self, tile: Tile, known: SoftExcess | None) -> SoftExcess:
        """Sum the exponentials of each row."""
        if self.scheme is None:
            return SoftExcess.of(self._exponents(tile))
        weighted = self._weigh(self.scheme, tile)
        return PulledExcess.of_pull(self._weighted_exponents(tile, weighted), weighted.pull)

    def losses(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return the soft maximum of the margin violations and 0."""
        return statistic.value() / self.scale

    def shares(self, tile: Tile, statistic: SoftExcess) -> Tensor:
        """Return p_ij, with margin and weighting in it."""
        if self.scheme is None:
            return statistic.share(self._exponents(tile))
        return statistic.share(self._weighted_exponents(tile, self._weigh(self.scheme, tile)))

    def push(self, tile: Tile, statistic: SoftExcess) -> Tensor:
        """Return p_ij, times the slope of the weighted S_ij."""
        shares_RC = self.shares(tile, statistic)
        return shares_RC if self.scheme is None else shares_RC * self._weigh(self.scheme, tile).push

    def pull(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return Σ_j p_ij, times the slope of the weighted d_i."""
        return statistic.share_of_pull() if isinstance(statistic, PulledExcess) else statistic.share_of_all()

    def exponents(self, anchors: Anchors) -> Exponents:
        """Return γ(S_ij − d_i + m)."""
        return Exponents(self.scale, self.scale * anchors.threshold(self.margin))

    def _exponents(self, tile: Tile) -> Tensor:
        return tile.mask_negatives(self.scale * (tile.scores - tile.anchors.threshold(self.margin)[:, None]))

    def _weigh(self, scheme: Scheme, tile: Tile) -> Weighted:
        return scheme.weigh(tile.scores, tile.anchors.own, self.detach_weights)

    def _weighted_exponents(self, tile: Tile, weighted: Weighted) -> Tensor:
        given = tile.anchors.margin
        margin = self.margin if given is None else given[:, None]
        return tile.mask_negatives(self.scale * (weighted.excess + margin))
