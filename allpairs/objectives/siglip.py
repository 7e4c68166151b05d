"""The pair-wise sigmoid loss (SigLIP), with a fixed or a learned scale and bias."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.contract import Anchors, Kernel, Reduction, Tile
from allpairs.engine.statistics import RowStatistic, Summed
from allpairs.objectives.base import PositivesByIds
from allpairs.objectives.checks import number
from allpairs.objectives.learned_scale import LearnsScale, hold, learned_number, value_of

_LARGEST_BIAS = 100.0
"""As large as the largest learned scale: beyond it no cosine similarity would be a positive, or all would."""


@dataclass(frozen=True)
class SigmoidSums(RowStatistic):
    """What an anchor's pairs cost and weigh, [R] each."""

    total: Summed
    """Σ_j log(1 + e^{−z_ij·x_ij})."""
    slope: Summed
    """Σ_j of its derivatives by x_ij; without gradient."""


class SigLIP(LearnsScale[SigmoidSums], PositivesByIds[SigmoidSums]):
    """Sigmoid loss of each pair on its own: f(i) = ½ Σ_j log(1 + e^{−z_ij(γS_ij + b)}), z = 1 for positives, else −1.

    Positives are the own pair and all of its id. A pair counts half for its query and half for its candidate, and so
    **once** in all: the mean is 1/B times the sum over all pairs, open_clip's `SigLipLoss` (with unequal numbers of
    queries and candidates, the average of the mean per query and the mean per candidate).

    With `learn_scale`, γ = e^{log_scale} and b = `bias` are parameters of this module: include it in what
    DistributedDataParallel wraps, keep weight decay off it, and call `constrain()` after each step of the optimiser,
    which holds γ at 100 at most and b within ±100.

    Row statistic: the sum of the losses of the row's pairs and that of their slopes.
    Pair weights: σ(γS + b) for a negative, −σ(−γS − b) for a positive, half for each direction; times γ.

    Source: Zhai et al. 2023 (arXiv 2303.15343), Algorithm 1, with its initial γ = 10 and b = −10.
    """

    needs_negatives: ClassVar[bool] = False

    kernel: Kernel | None = "sigmoid"

    def __init__(
        self,
        *,
        scale: float = 10.0,
        bias: float = -10.0,
        learn_scale: bool = False,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.set_scale(scale, learn_scale)
        bias = number("bias", bias, -_LARGEST_BIAS, _LARGEST_BIAS)
        if self.learn_scale:
            self._first_bias = bias
            self.bias = learned_number(bias)
        else:
            self.fixed_bias = bias

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set γ and b to the arguments again, as after construction on the device meta and `to_empty`."""
        super().reset_parameters()
        if self.learn_scale:
            self.bias.fill_(self._first_bias)

    def score_bias(self) -> Tensor | float:
        """Return b."""
        if not self.learn_scale:
            return self.fixed_bias
        return self.bias

    def learned(self) -> dict[str, float]:
        """Return γ and b if they are learned."""
        return super().learned() | ({"bias": value_of(self.bias)} if self.learn_scale else {})

    @torch.no_grad()
    def constrain(self) -> None:
        """Take back what a step has put γ beyond 100 or b beyond ±100."""
        super().constrain()
        if self.learn_scale:
            hold(self.bias, -_LARGEST_BIAS, _LARGEST_BIAS)

    def statistic(self, tile: Tile, known: SigmoidSums | None) -> SigmoidSums:
        """Sum the losses of each row's pairs, and their slopes."""
        of_negatives_R = tile.mask_negatives(-F.logsigmoid(-tile.scores), fill=0).sum(dim=1)
        with torch.no_grad():
            slope_R = 2 * self._weights(tile).sum(dim=1)
        if tile.is_positive is None:
            return SigmoidSums(of_negatives_R, slope_R)
        return SigmoidSums(of_negatives_R + tile.mask_positives(-F.logsigmoid(tile.scores), fill=0).sum(dim=1), slope_R)

    def of_sigmoids(self, totals: Tensor, slopes: Tensor) -> SigmoidSums:
        """Return just that."""
        return SigmoidSums(totals, slopes)

    def losses(self, anchors: Anchors, statistic: SigmoidSums) -> Tensor:
        """Return half of the sum: the other half is that of the other direction."""
        return statistic.total / 2

    def weights(self, tile: Tile, statistic: SigmoidSums) -> Tensor:
        """Return half the slope of each pair."""
        return self._weights(tile)

    def bias_slopes(self, statistic: SigmoidSums) -> Tensor:
        """Return half the sum of the slopes."""
        return statistic.slope / 2

    def _weights(self, tile: Tile) -> Tensor:
        push_RC = tile.mask_negatives(tile.scores.sigmoid(), fill=0)
        if tile.is_positive is None:
            return push_RC / 2
        return (push_RC - tile.mask_positives((-tile.scores).sigmoid(), fill=0)) / 2
