"""The relative-similarity polynomial loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction, Tile
from allpairs.engine.statistics import HardestNegative, RowStatistic, all_reduce
from allpairs.objectives.checks import number
from allpairs.objectives.hard_negative import Forces, OnHardestNegative
from allpairs.objectives.polynomial import Coefficients, Polynomial

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class RelativelyHardest(RowStatistic):
    """The negative of the highest G(S_ij − d_i), and its S_ij − d_i."""

    hardest: HardestNegative
    """By the value of G."""
    relative: Tensor
    """[R]: S_ij* − d_i."""

    def merge(self, later: "RelativelyHardest") -> "RelativelyHardest":
        """Return the harder of two; on a tie the earlier column stays."""
        harder_R = later.hardest.value > self.hardest.value
        return RelativelyHardest(
            self.hardest.merge(later.hardest), torch.where(harder_R, later.relative, self.relative)
        )

    def reduce(self, group: "ProcessGroup | None") -> "RelativelyHardest":
        """Return the hardest over all ranks; the rank that holds it tells its S_ij − d_i."""
        hardest = self.hardest.reduce(group)
        is_mine_R = (hardest.value == self.hardest.value) & (hardest.column == self.hardest.column)
        relative_R = self.relative.where(is_mine_R, -torch.inf)
        return RelativelyHardest(hardest, all_reduce(relative_R, dist.ReduceOp.MAX, group))


class RSP(OnHardestNegative[RelativelyHardest]):
    """Weighting by a polynomial of the relative similarity: f(i) = [G(S_ij* − d_i) + m]+, j* = argmax_j G(S_ij − d_i).

    The published coefficients are not known; the default G(x) = x is `triplet_hn`.

    Row statistic: the maximum of G over the negatives, its column and its S_ij − d_i.
    Pair weights: G′(S_ij* − d_i) for that negative, minus it for the positive, where the hinge is active.

    Source: U-Eq. 25 (Unified Loss). Its first line takes the hardest by S, its second by G: they differ where G is not
    monotone, and the second is used.
    """

    takes_margins: ClassVar[bool] = True

    def __init__(
        self,
        *,
        margin: float = 0.2,
        coefficients: Coefficients = (0.0, 1.0, 0.0),
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.margin = number("margin", margin, -2, 2)
        self.coefficients = Polynomial.of("coefficients", coefficients)

    def statistic(self, tile: Tile, known: RelativelyHardest | None) -> RelativelyHardest:
        """Find the relatively hardest negative of each row."""
        relative_RC = tile.scores - tile.anchors.own[:, None]
        hardest = HardestNegative.of(tile.mask_negatives(self.coefficients.value(relative_RC)), tile.first_column)
        column_R1 = (hardest.column - tile.first_column)[:, None]
        return RelativelyHardest(hardest, relative_RC.detach().gather(1, column_R1).squeeze(1))

    def losses(self, anchors: Anchors, statistic: RelativelyHardest) -> Tensor:
        """Return the hinge on it."""
        return (statistic.hardest.value + anchors.margin_or(self.margin)).relu()

    def hardest(self, statistic: RelativelyHardest) -> HardestNegative:
        """Return the negative of the highest G."""
        return statistic.hardest

    def forces(self, anchors: Anchors, statistic: RelativelyHardest) -> Forces:
        """Return G′ of each active anchor, twice."""
        active_R = self.losses(anchors, statistic) > 0
        force_R = self.coefficients.slope(statistic.relative.where(active_R, 0)) * active_R
        return Forces(force_R, force_R)
