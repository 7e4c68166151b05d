"""What every strategy's optimiser gets: groups of parameters that decay or learn slower, and its learning rate."""

import math
from typing import Any

import torch

from distributed.config.tree import Optimizer
from distributed.step import TrainStep


def make_adamw(step: TrainStep, config: Optimizer) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters of `step`.

    Vectors and scalars (biases, norm gains, learned scales) are exempt from weight decay; a transformers backbone
    learns at `backbone_lr_factor` of the rate.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, ".backbone." in name), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.lr,
                "lr_scale": config.backbone_lr_factor if is_backbone else 1.0,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (decays, is_backbone), parameters in groups.items()
        ],
        betas=config.betas,
    )


def set_learning_rate(param_groups: list[dict[str, Any]], learning_rate: float) -> None:
    """Give every group its share of `learning_rate`."""
    for group in param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


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
