"""A scale on every score that may be learned, by its logarithm and within a bound."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from allpairs.engine.contract import AnchorObjective, StatisticT
from allpairs.engine.products import HALF
from allpairs.errors import UserError
from allpairs.objectives.checks import flag, positive_number

LARGEST_LEARNED_SCALE = 100.0
"""CLIP's bound (Radford et al. 2021, §2.5), against instability."""
_LARGEST_LOG_SCALE = math.log(LARGEST_LEARNED_SCALE)


class LearnsScale(AnchorObjective[StatisticT]):
    """With `learn_scale`, γ = e^{log_scale}, and `log_scale` is a parameter of the objective.

    Include the objective in what DistributedDataParallel wraps, keep weight decay off it, and call `constrain()` after
    each step of the optimiser: it takes back a step beyond γ = 100, so that the gradient never vanishes there.

    What is learned stays in float32 (or float64) when its module is cast to half precision: near 5, steps of bfloat16
    are 1/32, and a learning rate of 10⁻³ would never move it.
    """

    def set_scale(self, scale: float, learn_scale: bool) -> None:
        """Take the arguments of the constructor."""
        self.learn_scale = flag("learn_scale", learn_scale)
        if self.learn_scale:
            self._first_scale = positive_number("scale", scale, high=LARGEST_LEARNED_SCALE)
            # One element, not a scalar: FSDP2 shards dimension 0.
            self.log_scale = learned_number(math.log(self._first_scale))
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
        return self.log_scale.exp()

    def score_scale(self) -> Tensor | float:
        """Return γ."""
        return self.scale

    def learned(self) -> dict[str, float]:
        """Return γ if it is learned."""
        return {"scale": math.exp(value_of(self.log_scale))} if self.learn_scale else {}

    @torch.no_grad()
    def constrain(self) -> None:
        """Take back what a step has put the learned γ beyond 100."""
        if self.learn_scale:
            hold(self.log_scale, high=_LARGEST_LOG_SCALE)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        """Move or cast parameters as a module does, but for half precision."""
        return super()._apply(lambda tensor: _kept_full(fn(tensor), tensor), recurse)


def learned_number(value: float) -> nn.Parameter:
    """Return a parameter [1] in at least float32."""
    precision = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return nn.Parameter(torch.full((1,), value, dtype=precision))


def value_of(parameter: Tensor) -> float:
    """Return a learned number. Collective where FSDP2 has sharded it."""
    parameter = parameter.detach()
    full_tensor = getattr(parameter, "full_tensor", None)
    return float(parameter if full_tensor is None else full_tensor())


def hold(parameter: Tensor, low: float | None = None, high: float | None = None) -> None:
    """Clamp a learned number, also where an optimiser steps a copy of its own.

    Raises:
        UserError: it is nowhere whole on this rank.
    """
    if not parameter.numel():
        raise UserError(
            "constrain(): DeepSpeed's stage 3 has taken the learned scale apart; accepted: its "
            "stage3_param_persistence_threshold at 1 or more, ZeRO-1 and 2, FSDP2, DDP"
        )
    parameter.clamp_(low, high)
    # ZeRO's next step starts from masters of which this rank has a part, or none.
    shared: Any = parameter
    if getattr(shared, "_hp_mapping", None) is not None:
        shared._hp_mapping.update_hp()
    if hasattr(shared, "_z3_optimizer"):
        shared._z3_optimizer.set_local_hp_param(shared.ds_tensor.clamp_(low, high), parameter)


def _kept_full(changed: Tensor, before: Tensor) -> Tensor:
    return before.to(changed.device) if changed.dtype in HALF and before.dtype not in HALF else changed
