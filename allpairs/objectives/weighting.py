"""Weights on the similarities of the unified loss: schemes w_ij, w_ii in γ(w_ij·S_ij − w_ii·d_i + m), U-Eq. 24.

Shapes: R anchors, C columns.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from allpairs.engine.row_statistics import SoftExcess, SumOfExponentials
from allpairs.engine.statistic import all_reduce
from allpairs.objectives.checks import choice
from allpairs.objectives.polynomial import Coefficients, Polynomial

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Weighting = Literal["none", "linear", "sigmoid", "ssp", "rsp"]

_ALPHA, _BETA, _THRESHOLD = 2.0, 10.0, 0.5
"""The constants of G-Eq. 11."""


class Weighted(NamedTuple):
    """Weighted similarities of a tile and their slopes, which are constants."""

    excess: Tensor
    """[R, C]: w_ij·S_ij − w_ii·d_i; differentiable."""
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
    """w_ij = σ(β(S_ij − λ)) and w_ii = σ(−α(d_i − λ)), with the constants of G-Eq. 11."""

    def of_negatives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return σ(β(S − λ))."""
        weight = torch.sigmoid(_BETA * (scores - _THRESHOLD))
        return weight, _BETA * weight * (1 - weight)

    def of_positives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return σ(−α(d − λ))."""
        weight = torch.sigmoid(-_ALPHA * (scores - _THRESHOLD))
        return weight, -_ALPHA * weight * (1 - weight)


class SelfSimilarity(ByOwnSimilarity):
    """Polynomials of the pair's own similarity."""

    def __init__(self, positive: Polynomial, negative: Polynomial) -> None:
        self.positive = positive
        self.negative = negative

    def of_negatives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the negatives' polynomial."""
        return self.negative.value(scores), self.negative.slope(scores)

    def of_positives(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positives' polynomial."""
        return self.positive.value(scores), self.positive.slope(scores)


class RelativeSimilarity(Scheme):
    """A polynomial of the relative similarity, which weighs the difference: G(S_ij − d_i)·(S_ij − d_i), U-Eq. 25."""

    def __init__(self, polynomial: Polynomial) -> None:
        self.polynomial = polynomial

    def weigh(self, scores_RC: Tensor, own_R: Tensor, detach: bool) -> Weighted:
        """Return G(x)·x with x = S_ij − d_i."""
        relative_RC = scores_RC - own_R[:, None]
        if detach:
            slope_RC = self.polynomial.value(relative_RC.detach())
            return Weighted(slope_RC * relative_RC, slope_RC, slope_RC)
        weight_RC = self.polynomial.value(relative_RC)
        slope_RC = (weight_RC + self.polynomial.slope(relative_RC) * relative_RC).detach()
        return Weighted(weight_RC * relative_RC, slope_RC, slope_RC)


def scheme(weighting: str, positive: Coefficients, negative: Coefficients, coefficients: Coefficients) -> Scheme | None:
    """Return the scheme named `weighting`, None for "none".

    Raises:
        UserError: an unknown name, or coefficients that are not three finite numbers.
    """
    own = SelfSimilarity(Polynomial.of("positive", positive), Polynomial.of("negative", negative))
    relative = RelativeSimilarity(Polynomial.of("coefficients", coefficients))
    schemes = {"none": None, "linear": Linear(), "sigmoid": Sigmoid(), "ssp": own, "rsp": relative}
    return schemes[choice("weighting", weighting, get_args(Weighting))]


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
