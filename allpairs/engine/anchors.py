"""What the engine shows an objective, and what it asks of it: tiles of scores seen from their anchors.

Shapes: R anchors (rows of the tile), C columns they look at in it, K positives of the anchor with the most. In the
other direction (candidate→query) the tile is the transposed scores, so an objective is written once, for rows.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from allpairs.engine.statistic import RowStatistic


@dataclass(frozen=True)
class Anchors:
    """What is known of R anchors before any column is seen: everything here is of size O(R)."""

    positive: Tensor | None = None
    """[R]: the score of each anchor with its own pair, d_i = S_ii; None for objectives that take positives from ids."""
    margin: Tensor | None = None
    """[R]: one margin per anchor in place of the objective's own, or None."""
    lowest_positive: Tensor | None = None
    """[], no gradient: min_k d_k over all pairs of the batch; None where `positive` is."""
    slots: Tensor | None = None
    """[R, K] int64: the global columns of each anchor's positives, lowest first, then −1; for objectives that ask."""

    @property
    def own(self) -> Tensor:
        """d_i [R] of an objective whose anchors have one positive, their own pair."""
        assert self.positive is not None, "only an objective with own_positive may ask"
        return self.positive

    def threshold(self, margin: float) -> Tensor:
        """Return d_i − m [R], the score above which a negative violates the margin; m_i where margins were given."""
        return self.own - (margin if self.margin is None else self.margin)


@dataclass(frozen=True)
class Tile:
    """The scores of R anchors against C consecutive columns of the batch."""

    anchors: Anchors
    scores: Tensor
    """[R, C] float32 or float64: S_ij."""
    first_column: int = 0
    """Global index of the first of the C columns."""
    is_positive: Tensor | None = None
    """[R, C] bool; None: no column of this tile is a positive. With one positive per anchor: its own pair alone."""
    is_negative: Tensor | None = None
    """[R, C] bool: j ∈ N(i); None: every column is a negative. False for all pairs of the anchor's instance."""
    column_positive: Tensor | None = None
    """[C], no gradient: d_j, the scores of the columns' own pairs; None where `anchors.positive` is."""

    def mask_negatives(self, values_RC: Tensor, fill: float = -torch.inf) -> Tensor:
        """Return `values_RC` with `fill` wherever the column is not a negative.

        Mask last, after scaling: a product with −inf has the derivative 0·∞ = NaN with respect to a learned factor.
        """
        return values_RC if self.is_negative is None else values_RC.masked_fill(~self.is_negative, fill)

    def mask_positives(self, values_RC: Tensor, fill: float = -torch.inf) -> Tensor:
        """Return `values_RC` with `fill` wherever the column is not a positive."""
        if self.is_positive is None:
            return torch.full_like(values_RC, fill)
        return values_RC.masked_fill(~self.is_positive, fill)


class SparseWeights(NamedTuple):
    """Weights of anchors that look at two columns each: +push at column `hardest`, −pull at their own pair."""

    hardest: Tensor
    """[R] int64: global column."""
    push: Tensor
    """[R]."""
    pull: Tensor
    """[R]."""


class Exponents(NamedTuple):
    """Exponents that are affine in the scores: x_ij = scale·S_ij − bias_i."""

    scale: float
    bias: Tensor
    """[R]."""


StatisticT = TypeVar("StatisticT", bound=RowStatistic)


class AnchorObjective(Protocol[StatisticT]):
    """An objective as the engine sees it: a row statistic, the loss it gives and the weights W_ij = ∂ℓ_i/∂S_ij.

    The statistic is what an anchor must know about its whole row and is of size O(R). Given it, the loss needs only
    what is of size R, and a weight only its own tile: an engine may therefore walk over the columns piece by piece.
    """

    reduction: str
    passes: int
    """How often the statistic must walk over the row: the pass p gets what pass p − 1 has found."""
    own_positive: ClassVar[bool]
    """Whether row i matches row i alone (ids then only mask) or the positives are all columns of the anchor's id."""
    needs_slots: ClassVar[bool]
    """Whether the objective asks for `Anchors.slots`."""

    def statistic(self, tile: Tile, known: StatisticT | None) -> StatisticT:
        """Return what each anchor must know about this tile's columns; differentiable. `known`: the pass before."""

    def losses(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return ℓ_i [R]; differentiable, through the statistic too."""

    def weights(self, tile: Tile, statistic: StatisticT) -> Tensor:
        """Return ∂ℓ_i/∂S_ij [R, C] in closed form."""

    def sparse_weights(self, anchors: Anchors, statistic: StatisticT) -> SparseWeights | None:
        """Return the same weights as two columns per anchor, or None if they are more: no tile needs a second look."""

    def score_scale(self) -> Tensor | float:
        """Return the factor, perhaps a learned one [1], on every score before the objective sees it."""

    kernel: str | None
    """Which fused kernel finds the statistic: "soft_excess" of affine exponents, "hardest" negative, or none does."""

    def exponents(self, anchors: Anchors) -> Exponents:
        """Return the exponents of an objective with the kernel "soft_excess"."""
