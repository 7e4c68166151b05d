"""The moving average of an encoder's weights, which is evaluated and saved in their place (`train.ema_decay`)."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from allpairs.models import DualEncoder
from distributed.world import local


class Average:
    """Weights averaged over steps: ``a ← d·a + (1 − d)·w``, with d rising to the configured decay over the first steps.

    ``d = min(decay, (1 + n) / (10 + n))`` after n steps, so that the first weights, which know nothing, fade soon.
    Batch statistics are those of the newest step. Every rank keeps the same.
    """

    def __init__(self, encoder: DualEncoder, decay: float, steps: int) -> None:
        """Begin with the weights of `encoder`, the average after `steps` steps."""

        def blend(averages: Any, weights: Any, count: Tensor | int) -> None:
            n = int(count) - 1
            # Of sharded weights each rank averages its own rows.
            rows = [local(average) for average in averages]
            torch._foreach_lerp_(rows, [local(w) for w in weights], 1 - min(decay, (1 + n) / (10 + n)))

        self._averaged = AveragedModel(encoder, multi_avg_fn=blend)
        self._averaged.n_averaged.fill_(steps + 1)  # at 0 it would copy the weights after the first step
        self._averaged.eval()

    @property
    def encoder(self) -> DualEncoder:
        """The encoder with the averaged weights."""
        return cast("DualEncoder", self._averaged.module)

    def update(self, encoder: DualEncoder) -> None:
        """Take the weights after a step in."""
        self._averaged.update_parameters(encoder)
