"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from distributed.config.tree import Optimizer


def learning_rate_factor(optimizer: Optimizer, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return what the peak learning rate is multiplied by at `step` (counted from 0).

    Linear warm-up over `warmup_epochs`, then cosine to zero at the end of training, division at the end of each of
    `decay_epochs`, or constant.
    """
    warmup = round(optimizer.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optimizer.schedule == "cosine":
        progress = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if optimizer.schedule == "step":
        return optimizer.decay_factor ** sum(step >= epoch * steps_per_epoch for epoch in optimizer.decay_epochs)
    return 1.0
