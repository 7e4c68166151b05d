"""What every strategy's optimiser gets: groups of parameters that decay or learn slower, and its learning rate."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch

from distributed.config.tree import Optimizer
from distributed.step import TrainStep


def make_adamw(step: TrainStep, config: Optimizer) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters of `step`.

    Vectors and scalars (biases, norm gains, learned scales) are exempt from weight decay; a transformers network learns
    at `backbone_lr_factor` of the rate, its lower layers slower by `layer_decay`.
    """
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    factors = rate_factors([name for name, _ in step.named_parameters()], config)
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, factors[name]), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.lr,
                "lr_scale": factor,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (decays, factor), parameters in groups.items()
        ],
        betas=config.betas,
    )


def rate_factors(names: Iterable[str], config: Optimizer) -> dict[str, float]:
    """Return each parameter's learning rate relative to `lr`; `names` in the order of the modules.

    Of a transformers network the parameters before its first numbered layer lie below all layers, those behind its last
    one above them (BEiT, Bao et al. 2022, counts layers so).
    """
    factors: dict[str, float] = {}
    towers: dict[tuple[str, str], list[str]] = {}  # of an ensemble each net has its own
    for name in names:
        factors[name] = 1.0
        net, backbone, _ = name.partition(".backbone.")
        if backbone:
            is_text = ".text.backbone." in name or ".backbone.text_" in name
            towers.setdefault(("text" if is_text else "image", net), []).append(name)
    for (tower, _), members in towers.items():
        factor, layers = getattr(config.backbone_lr_factor, tower), [_layer(name) for name in members]
        top = max((layer for layer in layers if layer is not None), default=0) + 1
        depth = 0
        for name, layer in zip(members, layers, strict=True):
            if layer is not None:
                depth = layer
            elif depth:
                depth = top
            factors[name] = factor * config.layer_decay ** (top - depth)
    return factors


def _layer(name: str) -> int | None:
    """Return the layer (counted from 1) that a network's parameter lies in: the first number of its name."""
    number = re.search(r"\.(\d+)\.", name.partition(".backbone.")[2])
    return None if number is None else int(number[1]) + 1


def set_learning_rate(param_groups: list[dict[str, Any]], learning_rate: float) -> None:
    """Give every group its share of `learning_rate`."""
    for group in param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def learning_rate_factor(optimizer: Optimizer, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Return what the peak learning rate is multiplied by at `step` (counted from 0) of `total_steps`.

    Linear warm-up over `warmup_epochs`, then cosine to zero at the end of training, division at the end of each of
    `decay_epochs` or of every epoch, or constant.
    """
    warmup = round(optimizer.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optimizer.schedule == "cosine":
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if optimizer.schedule == "step":
        return optimizer.decay_factor ** sum(step >= epoch * steps_per_epoch for epoch in optimizer.decay_epochs)
    if optimizer.schedule == "exponential":
        return optimizer.decay_factor ** (step // steps_per_epoch)
    return 1.0


class NonFiniteGradients(RuntimeError):  # noqa: N818 -- what happened in a step, not what we did wrong
    """The gradients, averaged over ranks, have no finite norm; no weight was changed."""


def require_finite(norm: float) -> None:
    """Refuse a step whose gradients have this norm, the same on all ranks.

    Raises:
        NonFiniteGradients: it is none.
    """
    if not math.isfinite(norm):
        raise NonFiniteGradients
