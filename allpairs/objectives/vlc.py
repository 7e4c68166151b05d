"""The vision-language contrastive loss (InfoNCE, CLIP), with a fixed or a learned scale."""

from allpairs.engine.contract import Reduction
from allpairs.engine.statistics import SoftExcess
from allpairs.objectives.learned_scale import LearnsScale
from allpairs.objectives.softmax import SoftmaxOverNegatives


class VLC(LearnsScale[SoftExcess], SoftmaxOverNegatives):
    """Vision-language contrastive loss: f(i) = log(1 + Σ_{j∈N(i)} e^{γ(S_ij − d_i)}), the softmax cross-entropy.

    With `learn_scale`, γ = e^{log_scale} and `log_scale` is a parameter of this module: include the module in what
    DistributedDataParallel wraps, keep weight decay off it, and call `constrain()` after each step of the optimiser: it
    takes back a step beyond γ = 100, so that the gradient never vanishes there.

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
        self.set_scale(scale, learn_scale)
