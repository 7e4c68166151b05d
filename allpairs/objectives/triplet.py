"""The sum-of-hinges triplet loss over all negatives of a batch."""

from typing import ClassVar

from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction, Tile
from allpairs.engine.statistics import HingeSum
from allpairs.objectives.base import OwnPair
from allpairs.objectives.checks import number


class Triplet(OwnPair[HingeSum]):
    """Triplet loss: every negative within the margin pushes, f(i) = Σ_{j∈N(i)} [m + S_ij − d_i]+.

    Row statistic: Σ_j [m + S_ij − d_i]+ and the number of active negatives.
    Pair weights: 1 for each active negative, −(their number) for the positive.

    Source: Kiros et al. 2014 (arXiv 1411.2539); "Triplet" of COCOS (§3.1).
    """

    takes_margins: ClassVar[bool] = True

    def __init__(self, *, margin: float = 0.2, reduction: Reduction = "mean", normalize: bool = True) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)

    def statistic(self, tile: Tile, known: HingeSum | None) -> HingeSum:
        """Sum the hinges of each row."""
        return HingeSum.of(self._excess(tile))

    def losses(self, anchors: Anchors, statistic: HingeSum) -> Tensor:
        """Return the sum of hinges."""
        return statistic.total

    def push(self, tile: Tile, statistic: HingeSum) -> Tensor:
        """Return 1 per active negative."""
        return (self._excess(tile) > 0).to(tile.scores)

    def pull(self, anchors: Anchors, statistic: HingeSum) -> Tensor:
        """Return the number of active negatives."""
        return statistic.active.to(anchors.own)

    def _excess(self, tile: Tile) -> Tensor:
        return tile.mask_negatives(tile.scores - tile.anchors.threshold(self.margin)[:, None])
