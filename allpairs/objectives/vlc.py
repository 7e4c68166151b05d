"""The vision-language contrastive loss (InfoNCE, CLIP), with a fixed or a learned scale."""

import math

import torch
from torch import Tensor, nn

from allpairs.objectives.base import Reduction
from allpairs.objectives.checks import flag, positive_number
from allpairs.objectives.softmax import SoftmaxOverNegatives

LARGEST_LEARNED_SCALE = 100.0
"""CLIP's bound (Radford et al. 2021, §2.5), against instability."""
_LARGEST_LOG_SCALE = math.log(LARGEST_LEARNED_SCALE)


class VLC(SoftmaxOverNegatives):
    """Vision-language contrastive loss: f(i) = log(1 + Σ_{j∈N(i)} e^{γ(S_ij − d_i)}), the softmax cross-entropy.

    With `learn_scale`, γ = e^{log_scale} and `log_scale` is a parameter of this module: include the module in what
    DistributedDataParallel wraps, and keep weight decay off it. A step beyond γ = 100 is taken back at the next call
    in training mode, so that the gradient never vanishes there.

    Row statistic and pair weights: see `SoftmaxOverNegatives`, with γ·S for S.

    Source: U-Eq. 3 and 4 (Unified Loss). CLIP's and open_clip's value is half of the mean here.
    """

    def __init__(
        self,
        *,
        scale: float = 1 / 0.07,
        learn_scale: bool = False,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.learn_scale = flag("learn_scale", learn_scale)
        if self.learn_scale:
            scale = positive_number("scale", scale, high=LARGEST_LEARNED_SCALE)
            # One element, not a scalar: FSDP2 shards dimension 0.
            self.log_scale = nn.Parameter(torch.full((1,), math.log(scale)))
        else:
            self.fixed_scale = positive_number("scale", scale)

    @property
    def scale(self) -> Tensor | float:
        """γ: the fixed number, or the learned one as a tensor [1] with gradient, at most 100."""
        if not self.learn_scale:
            return self.fixed_scale
        precise = self.log_scale.to(torch.promote_types(self.log_scale.dtype, torch.float32))
        return precise.clamp(max=_LARGEST_LOG_SCALE).exp()

    def score_scale(self) -> Tensor | float:
        """Return γ."""
        if self.learn_scale and self.training:
            # Through .data: a change that autograd sees would spoil the graphs of earlier calls of the same step.
            self.log_scale.data.clamp_(max=_LARGEST_LOG_SCALE)
        return self.scale
