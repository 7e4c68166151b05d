"""Weighted similarities of the unified loss, U-Eq. 24 and 25: what stands for S_ij − d_i in γ(S_ij − d_i + m).

Shapes: R anchors, C columns.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from allpairs.engine.statistics import SoftExcess, SumOfExponentials, all_reduce
from allpairs.objectives.polynomial import Polynomial

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Weighting = Literal["none", "linear", "sigmoid", "ssp", "rsp"]


class Weighted(NamedTuple):
    """Weighted similarities of a tile and their slopes, which are constants."""

    excess: Tensor
    """[R, C]: w_ij·S_ij − w_ii·d_i, or the polynomials that stand for it; differentiable."""
    push: Tensor
    """[R, C]: its derivative by S_ij."""
    pull: Tensor
    """[R, C] or [R, 1]: minus its derivative by d_i."""


class Scheme(ABC):
    """A way to weigh the similarities of a tile."""

    @abstractmethod
    def weigh(self, scores_RC: Tensor, own_R: Tensor, detach: bool) -> Weighted:
        """Return the weighted similarities; with `detach` the weights count as constants for the gradient."""


class ByOwnSimilarity(Scheme):
    """Weights that depend on the pair's own similarity alone: w_ij = N(S_ij), w_ii = P(d_i)."""

    @abstractmethod
    def of_negatives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return N and its slope."""

    @abstractmethod
    def of_positives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return P and its slope."""

    def weigh(self, scores_RC: Tensor, own_R: Tensor, detach: bool) -> Weighted:
        """Return w_ij·S_ij − w_ii·d_i."""
        own_R1 = own_R[:, None]
        if detach:
            push_RC, _ = self.of_negatives(scores_RC.detach())
            pull_R1, _ = self.of_positives(own_R1.detach())
            return Weighted(push_RC * scores_RC - pull_R1 * own_R1, push_RC, pull_R1)
        negative_RC, negative_slope_RC = self.of_negatives(scores_RC)
        positive_R1, positive_slope_R1 = self.of_positives(own_R1)
        return Weighted(
            negative_RC * scores_RC - positive_R1 * own_R1,
            (negative_RC + negative_slope_RC * scores_RC).detach(),
            (positive_R1 + positive_slope_R1 * own_R1).detach(),
        )


class Linear(ByOwnSimilarity):
    """w_ij = S_ij within [0, 1] and w_ii = 2 − d_i: both stay at least 0."""

    def of_negatives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return S within [0, 1]."""
        return scores.clamp(0, 1), ((scores >= 0) & (scores <= 1)).to(scores)

    def of_positives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return 2 − d."""
        return 2 - scores, torch.full_like(scores, -1)


class Sigmoid(ByOwnSimilarity):
    """w_ij = σ(β(S_ij − λ)) and w_ii = σ(−α(d_i − λ)), the form of G-Eq. 11.

    Undetached and with its constants there (2, 10, 0.5), d·w(d) turns over at d = 0.784: a positive above that is
    pushed; and S·w(S) falls below S = −0.1: a negative there is pulled.
    """

    def __init__(self, alpha: float, beta: float, threshold: float) -> None:
        self.alpha, self.beta, self.threshold = alpha, beta, threshold

    def of_negatives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return σ(β(S − λ))."""
        weight = torch.sigmoid(self.beta * (scores - self.threshold))
        return weight, self.beta * weight * (1 - weight)

    def of_positives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return σ(−α(d − λ))."""
        weight = torch.sigmoid(-self.alpha * (scores - self.threshold))
        return weight, -self.alpha * weight * (1 - weight)


class SelfSimilarity(Scheme):
    """The polynomials of `ssp` are the weighted similarities: G_neg(S_ij) + G_pos(d_i), U-Eq. 25's form for one pair.

    SSP's published G_neg falls below S = 2/9: a negative less similar than that is pulled, as by `ssp` itself below
    0.096. The softmax gives it next to no weight beside harder ones.
    """

    def __init__(self, positive: Polynomial, negative: Polynomial) -> None:
        self.positive = positive
        self.negative = negative

    def weigh(self, scores_RC: Tensor, own_R: Tensor, detach: bool) -> Weighted:
        """Return G_neg(S_ij) + G_pos(d_i); the polynomials have no weights that could be detached."""
        own_R1 = own_R[:, None]
        return Weighted(
            self.negative.value(scores_RC) + self.positive.value(own_R1),
            self.negative.slope(scores_RC).detach(),
            -self.positive.slope(own_R1).detach(),
        )


class RelativeSimilarity(Scheme):
    """The polynomial of `rsp` is the weighted relative similarity: G_rel(S_ij − d_i), U-Eq. 25.

    U-25's first line takes ŝ, the hardest, by S, its second by G, which differ where G is not monotone: here no hardest
    is chosen. The published coefficients are not known; the default G(x) = x weighs nothing.
    """

    def __init__(self, polynomial: Polynomial) -> None:
        self.polynomial = polynomial

    def weigh(self, scores_RC: Tensor, own_R: Tensor, detach: bool) -> Weighted:
        """Return G_rel(S_ij − d_i); the polynomial has no weight that could be detached."""
        relative_RC = scores_RC - own_R[:, None]
        slope_RC = self.polynomial.slope(relative_RC).detach()
        return Weighted(self.polynomial.value(relative_RC), slope_RC, slope_RC)


@dataclass(frozen=True)
class PulledExcess(SoftExcess):
    """A soft excess that also knows Σ_j e^{x_ij − peak_i}·t_ij, for a force t_ij on the positive from each negative."""

    pulled: Tensor
    """[R], without gradient."""

    @classmethod
    def of_pull(cls, masked_RC: Tensor, pull_RC: Tensor) -> "PulledExcess":
        """Return the statistic of each row; `pull_RC` is t, [R, C] or [R, 1]."""
        excess = SoftExcess.of(masked_RC)
        with torch.no_grad():
            pulled_R = ((masked_RC - excess.peak[:, None]).exp() * pull_RC).sum(dim=1)
        return cls(excess.peak, excess.total, pulled_R)

    def merge(self, later: SumOfExponentials) -> "PulledExcess":
        """Return the sums of both, relative to the higher peak."""
        assert isinstance(later, PulledExcess)
        peak_R = torch.maximum(self.peak, later.peak)
        pulled_R = self._pulled_at(peak_R) + later._pulled_at(peak_R)
        return PulledExcess(peak_R, self._total_at(peak_R) + later._total_at(peak_R), pulled_R)

    def reduce(self, group: "ProcessGroup | None") -> "PulledExcess":
        """Return the sums over all ranks."""
        excess = SoftExcess(self.peak, self.total).reduce(group)
        pulled_R = all_reduce(self._pulled_at(excess.peak), dist.ReduceOp.SUM, group)
        return PulledExcess(excess.peak, excess.total, pulled_R)

    def share_of_pull(self) -> Tensor:
        """Return Σ_j p_ij·t_ij [R]."""
        return self.pulled / (torch.exp(-self.peak) + self.total)

    def _pulled_at(self, peak_R: Tensor) -> Tensor:
        return self.pulled * (self.peak - peak_R).exp()
