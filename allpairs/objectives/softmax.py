"""What objectives whose anchors weigh their negatives by a softmax have in common.

Shapes: R anchors, C columns.
"""

from typing import ClassVar

from torch import Tensor

from allpairs.engine.contract import Anchors, Exponents, Family, Kernel, Tile
from allpairs.engine.statistics import SoftExcess
from allpairs.objectives.base import OwnPair


class SoftmaxOverNegatives(OwnPair[SoftExcess]):
    """f(i) = log(1 + Σ_{j∈N(i)} e^{S_ij − d_i}) of scores that carry their scale already (`score_scale`).

    Row statistic: log(1 + Σ_j e^{x_ij}) with x_ij = S_ij − d_i, as peak and sum.
    Pair weights: p_ij = e^{x_ij} / (1 + Σ_k e^{x_ik}) for a negative, −Σ_j p_ij for the positive; times the scale.
    """

    family: ClassVar[Family] = "softmax"
    kernel: Kernel | None = "soft_excess"

    def statistic(self, tile: Tile, known: SoftExcess | None) -> SoftExcess:
        """Sum the exponentials of each row."""
        return SoftExcess.of(self._exponents(tile))

    def losses(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return the softmax cross-entropy of the positive."""
        return statistic.value()

    def shares(self, tile: Tile, statistic: SoftExcess) -> Tensor:
        """Return p_ij."""
        return statistic.share(self._exponents(tile))

    def push(self, tile: Tile, statistic: SoftExcess) -> Tensor:
        """Return p_ij."""
        return self.shares(tile, statistic)

    def pull(self, anchors: Anchors, statistic: SoftExcess) -> Tensor:
        """Return Σ_j p_ij."""
        return statistic.share_of_all()

    def exponents(self, anchors: Anchors) -> Exponents:
        """Return S_ij − d_i."""
        return Exponents(1.0, anchors.own)

    def _exponents(self, tile: Tile) -> Tensor:
        return tile.mask_negatives(tile.scores - tile.anchors.own[:, None])
