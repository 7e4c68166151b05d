"""The contract between an objective and the engine: what is shown to it, and what is asked of it.

An objective sees tiles of scores from their anchors. R anchors are the rows of a tile, C columns what they look at in
it, K the positives of the anchor with the most. In the other direction (candidate→query) the tile is the transposed
scores, so an objective is written once, for rows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from allpairs.engine.statistics import HardestNegative, RowStatistic

Reduction = Literal["mean", "sum"]
Family = Literal["triplet", "softmax", "ranking", "sets"]
"""Which of COCOS' counts of contributing samples an objective gets; see `allpairs.analysis.contributing`."""
Kernel = Literal["soft_excess", "hardest", "sigmoid"]


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

    def margin_or(self, margin: float) -> Tensor | float:
        """Return the margins [R] that were given at the call, else the objective's own `margin`."""
        return margin if self.margin is None else self.margin

    def threshold(self, margin: float) -> Tensor:
        """Return d_i − m [R], the score above which a negative violates the margin; m_i where margins were given."""
        return self.own - self.margin_or(margin)


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

    def times(self, factors: Tensor) -> "SparseWeights":
        """Return the weights times `factors`, [] or [R]."""
        return SparseWeights(self.hardest, self.push * factors, self.pull * factors)


class Exponents(NamedTuple):
    """Exponents that are affine in the scores: x_ij = scale·S_ij − bias_i."""

    scale: float
    bias: Tensor
    """[R]."""


def biased(scores: Tensor, bias: Tensor | float) -> Tensor:
    """Return `scores` + `bias`, the same tensor where the bias is the number 0."""
    return scores if isinstance(bias, float) and bias == 0 else scores + bias


StatisticT = TypeVar("StatisticT", bound=RowStatistic)


class AnchorObjective(nn.Module, ABC, Generic[StatisticT]):
    """An objective as the engine sees it: a row statistic, the loss f(i) it gives and the weights W_ij = ∂f(i)/∂S_ij.

    L = Σ_i f_row(i) + Σ_i f_col(i), each direction averaged over its anchors with `reduction="mean"`. The statistic is
    what an anchor must know about its whole row and is of size O(R). Given it, the loss needs only what is of size R,
    and a weight only its own tile: an engine may therefore walk over the columns piece by piece.

    It also describes itself, so that nobody asks for its class: what follows from it for counting, for the service and
    for figures stands here.
    """

    own_positive: ClassVar[bool]
    """Whether row i matches row i alone (ids then only mask) or the positives are all columns of the anchor's id."""
    family: ClassVar[Family]
    """What COCOS counts of it."""
    takes_margins: ClassVar[bool] = False
    """Whether the objective has a margin, which `margins=` at the call may replace by one per pair (U-Eq. 26)."""
    needs_negatives: ClassVar[bool] = True
    """Whether a batch without any negative teaches nothing, since its loss is constant: all ids equal are refused."""
    surrogate: ClassVar[str | None] = None
    """What the value is, if it is not the function that the gradient descends; None for a loss."""
    needs_slots: ClassVar[bool] = False
    """Whether the objective asks for `Anchors.slots`."""
    passes: int = 1
    """How often the statistic must walk over the row: the pass p gets what pass p − 1 has found."""
    kernel: Kernel | None = None
    """Which fused kernel finds the statistic: "soft_excess" of affine exponents, "hardest" negative, "sigmoid"
    of each pair's score, or none does."""
    reduction: Reduction

    @abstractmethod
    def statistic(self, tile: Tile, known: StatisticT | None) -> StatisticT:
        """Return what each anchor must know about the columns of a tile; differentiable. `known`: the pass before."""

    @abstractmethod
    def losses(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return f(i) [R]; differentiable, through the statistic too."""

    @abstractmethod
    def weights(self, tile: Tile, statistic: StatisticT) -> Tensor:
        """Return ∂f(i)/∂S_ij [R, C] in closed form."""

    def sparse_weights(self, anchors: Anchors, statistic: StatisticT) -> SparseWeights | None:
        """Return the same weights as two columns per anchor, or None if they are more: no tile needs a second look."""
        return None

    def score_scale(self) -> Tensor | float:
        """Return the factor, perhaps a learned one [1], on every score: the objective sees scale · q_i·c_j + bias."""
        return 1.0

    def score_bias(self) -> Tensor | float:
        """Return what is added to every score, perhaps a learned number [1]; such an objective has `bias_slopes`."""
        return 0.0

    def scored(self, products: Tensor) -> Tensor:
        """Return the scores that the objective sees of the dot products q_i·c_j; differentiable."""
        return biased(products * self.score_scale(), self.score_bias())

    def bias_slopes(self, statistic: StatisticT) -> Tensor:
        """Return Σ_j W_ij [R], the derivative of f(i) by a bias on all scores."""
        raise NotImplementedError(f"{type(self).__name__} has no bias that could be learned")

    def exponents(self, anchors: Anchors) -> Exponents:
        """Return the exponents of an objective with the kernel "soft_excess"."""
        raise NotImplementedError(f"{type(self).__name__} has no affine exponents")

    def of_hardest(self, hardest: HardestNegative) -> StatisticT:
        """Return what the first pass of an objective with the kernel "hardest" finds, from what the kernel does."""
        raise NotImplementedError(f"{type(self).__name__} does not look at the hardest negative alone")

    def of_sigmoids(self, totals: Tensor, slopes: Tensor) -> StatisticT:
        """Return the statistic of an objective with the kernel "sigmoid": sums of log(1 + e^{−z·S}) and of slopes."""
        raise NotImplementedError(f"{type(self).__name__} is no sum of sigmoid losses")

    def shares(self, tile: Tile, statistic: StatisticT) -> Tensor:
        """Return p_ij = e^{x_ij} / (1 + Σ_k e^{x_ik}) [R, C] of an objective of the family "softmax"."""
        raise NotImplementedError(f"{type(self).__name__} does not weigh by a softmax")

    def statistic_of_row(self, tile: Tile) -> StatisticT:
        """Return the statistic of anchors whose whole row is one tile; differentiable."""
        statistic = None
        for _ in range(self.passes):
            statistic = self.statistic(tile, statistic)
        assert statistic is not None
        return statistic

    def statistic_of_triplet(self, tile: Tile) -> StatisticT:
        """Return the statistic of anchors that see one positive and one negative, for triplet diagrams."""
        return self.statistic_of_row(tile)

    def settings(self) -> dict[str, object]:
        """Return what the objective is, by name and as texts: equal on two ranks that compute the same."""
        public = {
            name: value for name, value in vars(self).items() if not name.startswith("_") and name not in _OF_TORCH
        }
        return {
            "objective": type(self).__name__,
            **{name.removeprefix("fixed_"): _text(value) for name, value in public.items()},
        }

    @property
    def constant_factor(self) -> float:
        """A factor in all weights that counting may leave out, as C leaves out 1/τ."""
        return 1.0

    def learned(self) -> dict[str, float]:
        """Return the arguments that training changes, by name, as the numbers they have reached."""
        return {}

    def constrain(self) -> None:
        """Take learned parameters back into their bounds: call it after each step of the optimiser."""


_OF_TORCH = ("training", "ds_id", "ds_recompute_parameters", "ds_grads_remaining", "pre_bwd_fn", "post_bwd_fn")
"""What a module has beside its own settings, DeepSpeed's stage 3 included."""


def _text(value: object) -> str:
    """Return a text of a setting that is the same in every process: an object's by its class and attributes."""
    if isinstance(value, tuple) or not hasattr(value, "__dict__"):
        return str(value)
    return f"{type(value).__name__}({', '.join(f'{name}={_text(part)}' for name, part in vars(value).items())})"
