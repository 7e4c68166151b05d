"""The normalised temperature-scaled cross-entropy loss."""

from allpairs.engine.contract import Reduction
from allpairs.objectives.checks import positive_number
from allpairs.objectives.softmax import SoftmaxOverNegatives


class NTXent(SoftmaxOverNegatives):
    """NT-Xent: f(i) = log(1 + Σ_{j∈N(i)} e^{(S_ij − d_i)/τ}); `vlc` with the scale 1/τ.

    Row statistic and pair weights: see `SoftmaxOverNegatives`, with S/τ for S.

    Source: C-Eq. 4 (COCOS). Its value, the mean over all 2B anchors, is half of the mean here.
    """

    def __init__(self, *, temperature: float = 0.1, reduction: Reduction = "mean", normalize: bool = True) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.temperature = positive_number("temperature", temperature)

    def score_scale(self) -> float:
        """Return 1/τ."""
        return 1 / self.temperature
