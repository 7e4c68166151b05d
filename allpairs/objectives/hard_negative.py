"""What objectives on the hardest negative alone have in common.

Shapes: R anchors, C columns.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from allpairs.engine.contract import Anchors, Kernel, SparseWeights, StatisticT, Tile
from allpairs.engine.statistics import HardestNegative
from allpairs.objectives.base import OwnPair


class Forces(NamedTuple):
    """How strongly each anchor pushes its hardest negative, ∂f/∂h, and pulls its own pair, −∂f/∂d."""

    push: Tensor
    """[R]; 0 for an anchor without negatives."""
    pull: Tensor
    """[R]; 0 for an anchor without negatives."""


class OnHardestNegative(OwnPair[StatisticT]):
    """An objective whose anchors look at their own pair and at one negative: two weights per anchor."""

    @abstractmethod
    def hardest(self, statistic: StatisticT) -> HardestNegative:
        """Return the one negative of each anchor."""

    @abstractmethod
    def forces(self, anchors: Anchors, statistic: StatisticT) -> Forces:
        """Return ∂f/∂h and −∂f/∂d."""

    def push(self, tile: Tile, statistic: StatisticT) -> Tensor:
        """Return ∂f/∂h in the column of the hardest negative."""
        column_R1 = (self.hardest(statistic).column - tile.first_column)[:, None]
        inside_R1 = (column_R1 >= 0) & (column_R1 < tile.scores.shape[1])
        push_R1 = self.forces(tile.anchors, statistic).push[:, None] * inside_R1
        return torch.zeros_like(tile.scores).scatter_add_(1, column_R1 * inside_R1, push_R1)

    def pull(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return −∂f/∂d."""
        return self.forces(anchors, statistic).pull

    def sparse_weights(self, anchors: Anchors, statistic: StatisticT) -> SparseWeights:
        """Return both entries."""
        push, pull = self.forces(anchors, statistic)
        return SparseWeights(self.hardest(statistic).column, push, pull)


class OnHighestScore(OnHardestNegative[HardestNegative]):
    """An objective whose one negative is that of the highest score, HN(i)."""

    kernel: Kernel | None = "hardest"

    def statistic(self, tile: Tile, known: HardestNegative | None) -> HardestNegative:
        """Find the hardest negative of each row."""
        return HardestNegative.of(tile.mask_negatives(tile.scores), tile.first_column)

    def of_hardest(self, hardest: HardestNegative) -> HardestNegative:
        """Return just that."""
        return hardest

    def hardest(self, statistic: HardestNegative) -> HardestNegative:
        """Return the statistic, which is just that."""
        return statistic
