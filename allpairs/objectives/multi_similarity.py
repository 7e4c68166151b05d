"""Multi-similarity loss across modalities, with its mining."""

from dataclasses import dataclass

import torch
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction, Tile
from allpairs.engine.statistics import Highest, Lowest, RowStatistic, SoftExcess
from allpairs.objectives.base import PositivesByIds
from allpairs.objectives.checks import number, positive_number


@dataclass(frozen=True)
class MinedPairs(RowStatistic):
    """What mining needs of a row and, in a second walk, the sums over what it keeps."""

    lowest_positive: Lowest
    """[R], without gradient; ∞ for an anchor without positives."""
    highest_negative: Highest
    """[R], without gradient; −∞ for an anchor without negatives."""
    positives: SoftExcess
    negatives: SoftExcess


class MultiSimilarity(PositivesByIds[MinedPairs]):
    """Multi-similarity loss: f(i) = (1/α) log(1 + Σ_p e^{−α(s_p − λ)}) + (1/β) log(1 + Σ_n e^{β(s_n − λ)}).

    The sums run over mined pairs: a negative is kept if s_n + ε is above the lowest positive, a positive if s_p − ε is
    below the highest negative; without any, the loss is 0. Mining has no gradient.

    Row statistic: the lowest positive and the highest negative; then both log-sum-exps over what they keep.
    Pair weights: e^{β(s_n − λ)}/(1 + Σ_n) for a kept negative, −e^{−α(s_p − λ)}/(1 + Σ_p) for a kept positive.

    Source: Wang et al. 2019 (arXiv 1904.06627), Eq. 10 to 16, with β = 40 of the released code (the paper: 50).
    """

    passes = 2

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 40.0,
        threshold: float = 0.5,
        epsilon: float = 0.1,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.alpha = positive_number("alpha", alpha)
        self.beta = positive_number("beta", beta)
        self.threshold = number("threshold", threshold, -1, 1)
        self.epsilon = number("epsilon", epsilon, 0, 2)

    def statistic(self, tile: Tile, known: MinedPairs | None) -> MinedPairs:
        """Find the extremes of each row; knowing them, sum the exponentials of what mining keeps."""
        if known is None:
            fixed_RC = tile.scores.detach()
            nothing_R = torch.zeros_like(fixed_RC[:, 0])
            return MinedPairs(
                lowest_positive=tile.mask_positives(fixed_RC, fill=torch.inf).amin(dim=1),
                highest_negative=tile.mask_negatives(fixed_RC).amax(dim=1),
                positives=SoftExcess(nothing_R, nothing_R),
                negatives=SoftExcess(nothing_R, nothing_R),
            )
        positives_RC, negatives_RC = self._exponents(tile, known)
        return MinedPairs(
            known.lowest_positive, known.highest_negative, SoftExcess.of(positives_RC), SoftExcess.of(negatives_RC)
        )

    def losses(self, anchors: Anchors, statistic: MinedPairs) -> Tensor:
        """Return the sum of both terms."""
        return statistic.positives.value() / self.alpha + statistic.negatives.value() / self.beta

    def weights(self, tile: Tile, statistic: MinedPairs) -> Tensor:
        """Return the shares of the kept pairs, those of the positives with a minus."""
        positives_RC, negatives_RC = self._exponents(tile, statistic)
        push_RC = statistic.negatives.share(negatives_RC)
        return push_RC if tile.is_positive is None else push_RC - statistic.positives.share(positives_RC)

    def _exponents(self, tile: Tile, known: MinedPairs) -> tuple[Tensor, Tensor]:
        """Return −α(s − λ) of the kept positives and β(s − λ) of the kept negatives, −inf elsewhere."""
        excess_RC = tile.scores - self.threshold
        fixed_RC = tile.scores.detach()
        keeps_negative_RC = fixed_RC + self.epsilon > known.lowest_positive[:, None]
        keeps_positive_RC = fixed_RC - self.epsilon < known.highest_negative[:, None]
        return (
            tile.mask_positives(-self.alpha * excess_RC).masked_fill(~keeps_positive_RC, -torch.inf),
            tile.mask_negatives(self.beta * excess_RC).masked_fill(~keeps_negative_RC, -torch.inf),
        )
