"""What the engine shows an objective, and what it asks of it: a strip of scores seen from its anchors.

Shapes: R anchors (rows of the strip), C columns they look at. In the other direction (candidate→query) the strip is the
transposed scores, so an objective is written once, for rows.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Anchors:
    """R anchors and their scores against C columns."""

    scores: Tensor
    """[R, C] float32 or float64: S_ij."""
    positive: Tensor
    """[R]: the score of each anchor with its own pair, d_i = S_ii."""
    is_positive: Tensor
    """[R, C] bool: the column of the anchor's own pair."""
    is_negative: Tensor
    """[R, C] bool: j ∈ N(i). False for the own pair and for other pairs of the same instance."""
    margin: Tensor | None = None
    """[R]: one margin per anchor in place of the objective's own, or None."""

    def mask_negatives(self, values_RC: Tensor) -> Tensor:
        """Return `values_RC` with −inf wherever the column is not a negative.

        Mask last, after scaling: a product with −inf has the derivative 0·∞ = NaN with respect to a learned factor.
        """
        return values_RC.masked_fill(~self.is_negative, -torch.inf)

    def threshold(self, margin: float) -> Tensor:
        """Return d_i − m [R], the score above which a negative violates the margin; m_i where margins were given."""
        return self.positive - (margin if self.margin is None else self.margin)


def anchors_of(
    scores_RC: Tensor,
    first: int,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    margin_R: Tensor | None = None,
) -> Anchors:
    """Return the anchors of a strip of scores whose row r matches column `first` + r.

    `row_ids` [R] and `column_ids` [C] mask the pairs of one instance; without them only the own pair is no negative.
    """
    rows, columns = scores_RC.shape
    own_R = torch.arange(first, first + rows, device=scores_RC.device)
    is_positive_RC = own_R[:, None] == torch.arange(columns, device=scores_RC.device)
    is_negative_RC = ~is_positive_RC
    if row_ids is not None and column_ids is not None:
        is_negative_RC &= row_ids[:, None] != column_ids
    positive_R = scores_RC.gather(1, own_R[:, None]).squeeze(1)
    return Anchors(scores_RC, positive_R, is_positive_RC, is_negative_RC, margin_R)


StatisticT = TypeVar("StatisticT")


class AnchorObjective(Protocol[StatisticT]):
    """An objective as the engine sees it: a row statistic, the loss it gives and the weights W_ij = ∂ℓ_i/∂S_ij.

    The statistic is what an anchor must know about its whole row and is of size O(R). Given it, the loss needs only
    what is of size R, and a weight only its own score: an engine may therefore walk over the columns in any order.
    """

    reduction: str

    def statistic(self, anchors: Anchors) -> StatisticT:
        """Return what each anchor must know about its row; differentiable."""

    def losses(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return ℓ_i [R]; differentiable, through the statistic too."""

    def weights(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return ∂ℓ_i/∂S_ij [R, C] in closed form."""
