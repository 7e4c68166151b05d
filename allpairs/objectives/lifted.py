"""The generalised lifted structure loss across modalities."""

from typing import ClassVar

import torch
from torch import Tensor

from allpairs.engine.contract import Anchors, Reduction, Tile
from allpairs.engine.statistics import SumOfExponentials
from allpairs.objectives.base import PositivesByIds
from allpairs.objectives.checks import positive_number
from allpairs.objectives.circle import BothSums


class Lifted(PositivesByIds[BothSums]):
    """Lifted structure loss: f(i) = (2/β) log Σ_p e^{−β·s_p} + (2/α) log Σ_n e^{α·s_n}.

    The term of an empty set is 0. There is no hinge over the sum, so the value may be negative.

    Row statistic: the log-sum-exp over the positives and that over the negatives.
    Pair weights: 2 times the negative's share of its sum, −2 times the positive's.

    Source: Song et al. 2016 in the generalised form of Hermans et al. 2017 (arXiv 1703.07737, §2); named in GOAL.
    """

    needs_negatives: ClassVar[bool] = False

    def __init__(
        self, *, alpha: float = 40.0, beta: float = 2.0, reduction: Reduction = "mean", normalize: bool = True
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.alpha = positive_number("alpha", alpha)
        self.beta = positive_number("beta", beta)

    def statistic(self, tile: Tile, known: BothSums | None) -> BothSums:
        """Sum the exponentials of both sets."""
        positives_RC, negatives_RC = self._exponents(tile)
        return BothSums(SumOfExponentials.of(positives_RC), SumOfExponentials.of(negatives_RC))

    def losses(self, anchors: Anchors, statistic: BothSums) -> Tensor:
        """Return the sum of both terms."""
        terms = []
        for summed, scale in ((statistic.positives, self.beta), (statistic.negatives, self.alpha)):
            log_R = summed.log()
            terms.append(torch.where(summed.total > 0, 2 / scale * log_R, 0))
        return terms[0] + terms[1]

    def weights(self, tile: Tile, statistic: BothSums) -> Tensor:
        """Return twice the shares, those of the positives with a minus."""
        positives_RC, negatives_RC = self._exponents(tile)
        push_RC = statistic.negatives.share(negatives_RC)
        if tile.is_positive is None:
            return 2 * push_RC
        return 2 * (push_RC - statistic.positives.share(positives_RC))

    def _exponents(self, tile: Tile) -> tuple[Tensor, Tensor]:
        return tile.mask_positives(-self.beta * tile.scores), tile.mask_negatives(self.alpha * tile.scores)
