"""What an anchor may need to know about its row. Each statistic is of size O(R), whatever the number of columns.

Shapes: R anchors, C columns. Masked columns come in as −inf; a row may consist of nothing else.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class HardestNegative(NamedTuple):
    """The maximum of a row and the lowest column that holds it."""

    value: Tensor
    """[R]; −inf for an anchor without negatives."""
    column: Tensor
    """[R] int64."""

    @classmethod
    def of(cls, masked_RC: Tensor) -> "HardestNegative":
        """Return the hardest negative of each row; the gradient of `value` goes to that one column."""
        value_R, column_R = masked_RC.max(dim=1)  # documented to return the first of equal maxima, on every device
        return cls(value_R, column_R)


class HingeSum(NamedTuple):
    """The sum of a row's positive parts and the number of entries that are positive."""

    total: Tensor
    """[R]: Σ_j [x_ij]+."""
    active: Tensor
    """[R] int64: #{ j : x_ij > 0 }."""

    @classmethod
    def of(cls, masked_RC: Tensor) -> "HingeSum":
        """Return the sum of hinges of each row."""
        return cls(masked_RC.relu().sum(dim=1), (masked_RC > 0).sum(dim=1))


class SoftExcess(NamedTuple):
    """log(1 + Σ_j e^{x_ij}) of a row, kept as a peak and a sum so that nothing overflows.

    The peak is max(0, max_j x_ij): the 1 takes part in it, so a row of −inf needs no special case.
    """

    peak: Tensor
    """[R] ≥ 0, detached: the value does not depend on it."""
    total: Tensor
    """[R]: Σ_j e^{x_ij − peak_i}."""

    @classmethod
    def of(cls, masked_RC: Tensor) -> "SoftExcess":
        """Return the statistic of each row."""
        peak_R = masked_RC.detach().amax(dim=1).clamp(min=0)
        return cls(peak_R, (masked_RC - peak_R[:, None]).exp().sum(dim=1))

    def value(self) -> Tensor:
        """Return log(1 + Σ_j e^{x_ij}) [R], to full precision also when the sum is far below 1."""
        return self.peak + torch.log1p(torch.expm1(-self.peak) + self.total)

    def share(self, masked_RC: Tensor) -> Tensor:
        """Return p_ij = e^{x_ij} / (1 + Σ_k e^{x_ik}) [R, C], the derivative of the value."""
        return (masked_RC - self.peak[:, None]).exp() / self._normaliser()[:, None]

    def share_of_all(self) -> Tensor:
        """Return Σ_j p_ij [R]."""
        return self.total / self._normaliser()

    def _normaliser(self) -> Tensor:
        return torch.exp(-self.peak) + self.total
