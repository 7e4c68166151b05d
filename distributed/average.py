"""The moving average of an encoder's weights, which is evaluated and saved in their place (`train.ema_decay`)."""

from copy import deepcopy

import torch

from allpairs.models import DualEncoder
from distributed.world import local


class Average:
    """Weights averaged over steps: ``a ← d·a + (1 − d)·w``, with d rising to the configured decay over the first steps.

    ``d = min(decay, (1 + n) / (10 + n))`` after n steps, so that the first weights, which know nothing, fade soon.
    Batch statistics are those of the newest step. Every rank keeps the same, or of weights that ranks share its part.

    Attributes:
        encoder: with the averaged weights.
    """

    def __init__(self, encoder: DualEncoder, decay: float, steps: int) -> None:
        """Begin with the weights of `encoder`, the average after `steps` steps."""
        self.encoder = deepcopy(encoder).eval()
        self._decay = decay
        self._steps = steps

    @torch.no_grad()
    def update(self, encoder: DualEncoder) -> None:
        """Take the weights after a step in."""
        averages = [local(average) for average in self.encoder.parameters()]
        weights = [local(weight) for weight in encoder.parameters()]
        n, self._steps = self._steps, self._steps + 1
        torch._foreach_lerp_(averages, weights, 1 - min(self._decay, (1 + n) / (10 + n)))
        for ours, newest in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
            ours.copy_(newest)
