"""The gradients of one step, element by element, by each strategy: what one rank of a world holds of them.

Of an encoder with layers of its own, and of a CLIP, whose modules read each other's weights.

AdamW hides constant factors in gradients, but its first moment after a step with β₁ = 0 is the gradient itself.
"""

from typing import Any

import torch
from torch import Tensor

from allpairs.models import DualSpec, GruSpec, RegionsSpec, WholeSpec, build
from allpairs.objectives import make
from distributed.cached import chunks_of
from distributed.config import validate
from distributed.step import Pairs, TrainStep
from distributed.strategies import make_strategy
from distributed.world import World

ROWS = 7
"""Of which one of two ranks has 4, the other 3."""
WAYS = {
    "ddp": {"strategy": "ddp"},
    "zero1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero2": {"strategy": "deepspeed", "zero_stage": 2},
    # As DeepSpeed has it, it would keep a model of this size whole.
    "zero3": {"strategy": "deepspeed", "zero_stage": 3}
    | {"deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
    "fsdp2": {"strategy": "fsdp2"},
}

_ZERO = {"offload_optimizer": {"device": "cpu"}, "stage3_param_persistence_threshold": 0}
OFFLOADED = {
    f"zero{stage}, offloaded": {"strategy": "deepspeed", "zero_stage": stage, "deepspeed": {"zero_optimization": _ZERO}}
    for stage in (2, 3)
}

_LAYERS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_CLIP = {"text_config": _LAYERS, "vision_config": _LAYERS | {"image_size": 16, "patch_size": 8}, "projection_dim": 8}
MODELS = {
    "regions": DualSpec(image=RegionsSpec(features=6), text=GruSpec(embedding=5), dim=8),
    "clip": WholeSpec(name="clip", pretrained=False, config=_CLIP),
}
WAYS_OF = {"regions": WAYS | OFFLOADED, "clip": WAYS}


def made(model: str, world: World) -> tuple[TrainStep, Pairs]:
    """Return the same initial step on every rank, and this rank's rows of the same batch."""
    torch.manual_seed(5)
    encoder = build(MODELS[model], 9)
    images = torch.randn(ROWS, 4, 6) if model == "regions" else torch.randint(256, (ROWS, 3, 16, 16)).byte()
    tokens = torch.randint(1, 9, (ROWS, 6))
    lengths, ids = torch.randint(2, 6, (ROWS,)), torch.arange(ROWS)
    rows = slice(world.rank * 4, min(world.rank * 4 + 4, ROWS)) if world.size > 1 else slice(None)
    objective = make("vlc", scale=10.0, learn_scale=True)
    pairs = Pairs(images, tokens, lengths, ids, ids).of_rows(rows, rows)
    return TrainStep(encoder, objective, world.group, "fp32"), pairs


def gradients(model: str, world: World) -> dict[str, list[tuple[str, int, Tensor]]]:
    """Return by strategy, at once and in micro-batches, this rank's part: name, first element, elements."""
    found = {}
    optimizer = {"betas": (0.0, 0.999), "clip_norm": None, "warmup_epochs": 0}
    for name, way in WAYS_OF[model].items():
        for micro in (None, 2):
            train: dict[str, Any] = way | {"global_batch": ROWS, "micro_batch": micro}
            config = validate({"run": {"name": "x"}, "train": train, "optimizer": optimizer})
            step, pairs = made(model, world)
            strategy = make_strategy(config, step, world)
            for _ in range(2):  # a second step must not meet what is left of the first
                chunks = 1 if micro is None else chunks_of(ROWS, world.size, micro)
                strategy.backward(strategy.forward(pairs, chunks).loss)
                strategy.update(0.0)
            key = name if micro is None else f"{name} in micro-batches"
            found[key] = [(piece.name, piece.start, piece.moments["exp_avg"]) for piece in strategy.moments()]
    return found
