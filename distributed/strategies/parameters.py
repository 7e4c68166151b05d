"""Which parameters decay and which learn slower: the groups every strategy's optimiser gets."""

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
