"""GOAL: 15 objectives given by their gradient alone, a triplet weight times a pair weight."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction, Tile
from allpairs.engine.statistics import HardestNegative, RowStatistic, Summed
from allpairs.objectives.checks import choice, number, positive_number
from allpairs.objectives.hard_negative import Forces, OnHardestNegative

TripletWeight = Literal["con", "nca", "cir"]
PairWeight = Literal["con", "lin", "sig", "lin_ms", "sig_ms"]

RELATION = 0.1
"""m₊ and m₋ in triplet diagrams."""

_STEEPEST = 20.0
"""Bound of α and β: pair weights have no bound of their own, and with scores in [−2, 2] they stay finite in float32."""


@dataclass(frozen=True)
class Relations(RowStatistic):
    """The hardest negative h of each anchor and, in a second walk, how it and the positive d stand to their likes."""

    hardest: HardestNegative
    positive_total: Summed
    """[R]: over 𝒫_i, the positives R of the anchor's negatives with R < h + ε, Σ (d − R) or Σ e^{α(d − R)}."""
    positive_count: Summed
    """[R]: |𝒫_i|."""
    negative_total: Summed
    """[R]: over 𝒩_i, the other negatives R with R > min_k d_k − ε, Σ (h − R) or Σ e^{−β(h − R)}."""
    negative_count: Summed
    """[R]: |𝒩_i|."""


class Goal(OnHardestNegative[Relations]):
    """GOAL: the gradient of a triplet is T·P₋ on its hardest negative and −T·P₊ on its positive.

    With d = d_i and h = S_i,HN(i), `triplet` gives T and `pair` gives P₊ and P₋:

    - con: T = 1 where m + h − d > 0, everywhere with `margin=None`; nca: T = σ(−τ(d − h)); cir: T = σ(−τ(d(2 − d) − h²
      − offset)), where the released code has the offset 0.5.
    - con: P₊ = P₋ = 1; lin: 1 − d and h; sig: 1/(1 + e^{α(d−λ)}) and 1/(1 + e^{−β(h−λ)}).
    - lin_ms: (1 − m₊)(1 − d) and (1 + m₋)h, with m₊ = mean(d − R) over 𝒫_i and m₋ = mean(h − R) over 𝒩_i; sig_ms:
      1/(m₊ + e^{α(d−λ)}) and 1/(m₋ + e^{−β(h−λ)}), with m₊ = mean e^{α(d−R)} and m₋ = mean e^{−β(h−R)}. 𝒫_i are the
      positives of the anchor's negatives below h + ε, 𝒩_i its negatives but the hardest above min_k d_k − ε. Of an
      empty set the mean is 0 for lin_ms and 1 for sig_ms, so that sig_ms is then sig; the released code has 0.

    **Not a loss.** The value is a surrogate, Σ (h − d) over the anchors, that need not fall in training; its gradient
    is W times the gradient that comes in.

    A negative below 0 is pulled by lin and lin_ms (P₋ has the sign of h); lin_ms pushes a positive that is more than 1
    above the mean of 𝒫_i (m₊ > 1). G's sentence on m₋ > 1 contradicts its formula (the hardest negative always has
    m₋ ≤ 1); the formula is used.

    Row statistic: the maximum over the negatives and its column; for the pairs with ms, the four sums of `Relations`.
    Pair weights: T·P₋ for the hardest negative and −T·P₊ for the positive.

    G Table 1 names what its cells equal. Exactly: (con, con) is the gradient of `triplet_hn`, (nca, con)·τ that of
    `nt_xent_hn`; (con, sig) has the weights of binomial deviance above the hinge, up to its 1/α and 1/β. (cir, lin) is
    Circle's only with τ = γ, `offset` = 1 − 2m² and m = 0 for the pair weights; (con, sig_ms) takes means where
    multi-similarity takes sums.

    Source: G-Eq. 7 to 15 and Table 1 (GOAL).
    """

    surrogate: ClassVar[str | None] = "h − d, hardest negative minus positive"

    def __init__(
        self,
        *,
        triplet: TripletWeight = "con",
        pair: PairWeight = "con",
        margin: float | None = 0.2,
        tau: float = 10.0,
        alpha: float = 2.0,
        beta: float = 10.0,
        threshold: float = 0.5,
        epsilon: float = 0.1,
        offset: float = 0.0,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.triplet = choice("triplet", triplet, get_args(TripletWeight))
        self.pair = choice("pair", pair, get_args(PairWeight))
        self.margin = None if margin is None else number("margin", margin, -2, 2)
        self.tau = positive_number("tau", tau)
        self.alpha = positive_number("alpha", alpha, high=_STEEPEST)
        self.beta = positive_number("beta", beta, high=_STEEPEST)
        self.threshold = number("threshold", threshold, -1, 1)
        self.epsilon = number("epsilon", epsilon, 0, 2)
        self.offset = number("offset", offset, -10, 10)
        self.passes = 2 if self.pair in ("lin_ms", "sig_ms") else 1
        self.kernel = "hardest"

    def statistic(self, tile: Tile, known: Relations | None) -> Relations:
        """Find the hardest negative of each row; knowing it, relate it and the positive to the others."""
        if known is None:
            return self.of_hardest(HardestNegative.of(tile.mask_negatives(tile.scores), tile.first_column))
        return self._relate(tile, known.hardest)

    def losses(self, anchors: Anchors, statistic: Relations) -> Tensor:
        """Return h − d, the surrogate's value, with T·P₋ and −T·P₊ as its gradient; 0 without negatives."""
        hardest = self.hardest(statistic)
        exists_R = hardest.exists()
        hardest_R = hardest.value.where(exists_R, 0)
        push_R, pull_R = self.forces(anchors, statistic)
        carrier_R = push_R * hardest_R - pull_R * anchors.own
        value_R = torch.where(exists_R, hardest_R - anchors.own, 0).detach()
        return value_R + (carrier_R - carrier_R.detach())

    def of_hardest(self, hardest: HardestNegative) -> Relations:
        """Return what is known before anything is related: both sets empty."""
        nothing_R = torch.zeros_like(hardest.value)
        return Relations(hardest, nothing_R, nothing_R, nothing_R, nothing_R)

    def statistic_of_triplet(self, tile: Tile) -> Relations:
        """Return m₊ = m₋ = 0.1 for the pairs with ms, as in G Fig. 3: in one triplet there is nothing to relate to."""
        found = self.of_hardest(HardestNegative.of(tile.mask_negatives(tile.scores), tile.first_column))
        if self.passes == 1:
            return found
        total_R, count_R = torch.full_like(found.positive_total, RELATION), torch.ones_like(found.positive_count)
        return Relations(found.hardest, total_R, count_R, total_R, count_R)

    def hardest(self, statistic: Relations) -> HardestNegative:
        """Return HN(i)."""
        return statistic.hardest

    @torch.no_grad()
    def forces(self, anchors: Anchors, statistic: Relations) -> Forces:
        """Return T·P₋ and T·P₊."""
        hardest = self.hardest(statistic)
        exists_R = hardest.exists()
        positive_R, hardest_R = anchors.own, hardest.value.where(exists_R, 0)
        triplet_R = self._triplet_weight(positive_R, hardest_R) * exists_R
        positive_weight_R, negative_weight_R = self._pair_weights(positive_R, hardest_R, statistic)
        return Forces(triplet_R * negative_weight_R, triplet_R * positive_weight_R)

    def _triplet_weight(self, positive_R: Tensor, hardest_R: Tensor) -> Tensor:
        if self.triplet == "nca":
            return torch.sigmoid(-self.tau * (positive_R - hardest_R))
        if self.triplet == "cir":
            return torch.sigmoid(-self.tau * (positive_R * (2 - positive_R) - hardest_R**2 - self.offset))
        if self.margin is None:
            return torch.ones_like(positive_R)
        return (self.margin + hardest_R - positive_R > 0).to(positive_R)

    def _pair_weights(self, positive_R: Tensor, hardest_R: Tensor, statistic: Relations) -> tuple[Tensor, Tensor]:
        """Return P₊ and P₋ [R]."""
        if self.pair == "con":
            return torch.ones_like(positive_R), torch.ones_like(hardest_R)
        if self.pair.startswith("lin"):
            linear = 1 - positive_R, hardest_R
            if self.pair == "lin":
                return linear
            above_R, below_R = self._means(statistic, neutral=0.0)
            return (1 - above_R) * linear[0], (1 + below_R) * linear[1]
        above_R, below_R = self._means(statistic, neutral=1.0)
        positive_weight_R = 1 / (above_R + torch.exp(self.alpha * (positive_R - self.threshold)))
        negative_weight_R = 1 / (below_R + torch.exp(-self.beta * (hardest_R - self.threshold)))
        return positive_weight_R, negative_weight_R

    def _means(self, statistic: Relations, neutral: float) -> tuple[Tensor, Tensor]:
        """Return m₊ and m₋ [R], `neutral` for an empty set; without a second walk all sets are empty."""
        means = []
        for total_R, count_R in (
            (statistic.positive_total, statistic.positive_count),
            (statistic.negative_total, statistic.negative_count),
        ):
            means.append(torch.where(count_R > 0, total_R / count_R.clamp(min=1), neutral))
        return means[0], means[1]

    @torch.no_grad()
    def _relate(self, tile: Tile, hardest: HardestNegative) -> Relations:
        anchors, scores_RC = tile.anchors, tile.scores
        assert tile.column_positive is not None
        assert anchors.lowest_positive is not None
        others_RC = tile.column_positive.expand_as(scores_RC)
        hardest_R1, own_R1 = hardest.value[:, None], anchors.own[:, None]
        in_positives_RC = others_RC < hardest_R1 + self.epsilon
        column_C = torch.arange(scores_RC.shape[1], device=scores_RC.device) + tile.first_column
        in_negatives_RC = scores_RC > anchors.lowest_positive - self.epsilon
        in_negatives_RC = in_negatives_RC & (column_C != hardest.column[:, None])
        if tile.is_negative is not None:
            in_positives_RC = in_positives_RC & tile.is_negative
            in_negatives_RC = in_negatives_RC & tile.is_negative
        above_RC, below_RC = own_R1 - others_RC, hardest_R1 - scores_RC
        if self.pair == "sig_ms":
            above_RC, below_RC = torch.exp(self.alpha * above_RC), torch.exp(-self.beta * below_RC)
        return Relations(
            hardest,
            above_RC.where(in_positives_RC, 0).sum(dim=1),
            in_positives_RC.sum(dim=1).to(scores_RC),
            below_RC.where(in_negatives_RC, 0).sum(dim=1),
            in_negatives_RC.sum(dim=1).to(scores_RC),
        )
