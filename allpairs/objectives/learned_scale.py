"""A scale on every score that may be learned, by its logarithm and within a bound."""

import math

import torch
from torch import Tensor, nn

from allpairs.engine.contract import AnchorObjective, StatisticT
from allpairs.objectives.checks import flag, positive_number

LARGEST_LEARNED_SCALE = 100.0
"""CLIP's bound (Radford et al. 2021, §2.5), against instability."""
_LARGEST_LOG_SCALE = math.log(LARGEST_LEARNED_SCALE)


class LearnsScale(AnchorObjective[StatisticT]):
    """With `learn_scale`, γ = e^{log_scale}, and `log_scale` is a parameter of the objective.

    Include the objective in what DistributedDataParallel wraps, keep weight decay off it, and call `constrain()` after
    each step of the optimiser: it takes back a step beyond γ = 100, so that the gradient never vanishes there.
    """

    def set_scale(self, scale: float, learn_scale: bool) -> None:
        """Take the arguments of the constructor."""
        self.learn_scale = flag("learn_scale", learn_scale)
        if self.learn_scale:
            self._first_scale = positive_number("scale", scale, high=LARGEST_LEARNED_SCALE)
            # One element, not a scalar: FSDP2 shards dimension 0.
            self.log_scale = nn.Parameter(torch.full((1,), math.log(self._first_scale)))
        else:
            self.fixed_scale = positive_number("scale", scale)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set γ to the argument again, as after construction on the device meta and `to_empty`."""
        if self.learn_scale:
            self.log_scale.fill_(math.log(self._first_scale))

    @property
    def scale(self) -> Tensor | float:
        """γ: the fixed number, or the learned one as a tensor [1] with gradient."""
        if not self.learn_scale:
            return self.fixed_scale
        return self.log_scale.to(torch.promote_types(self.log_scale.dtype, torch.float32)).exp()

    def score_scale(self) -> Tensor | float:
        """Return γ."""
        return self.scale

    def learned(self) -> dict[str, float]:
        """Return γ if it is learned."""
        return {"scale": self.log_scale.detach().double().exp().item()} if self.learn_scale else {}

    @torch.no_grad()
    def constrain(self) -> None:
        """Take back what a step has put the learned γ beyond 100."""
        if self.learn_scale:
            self.log_scale.clamp_(max=_LARGEST_LOG_SCALE)
