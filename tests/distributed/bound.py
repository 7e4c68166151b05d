"""A learned scale and bias driven to their bounds and back, stepped by each strategy: what one rank of a world does."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode

from allpairs.engine import global_value
from allpairs.objectives import make
from distributed.config import validate
from distributed.step import Pairs, TrainStep
from distributed.strategies import make_strategy
from distributed.world import World
from tests.distributed.first_step import WAYS

TURN, LOOKS = 60, (60, 71, 120)
"""From this step on every image meets another one's caption; after these steps the numbers are noted."""


class Given(nn.Module):
    """Two frozen encoders whose inputs are their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Parameter(torch.ones(1, 4), requires_grad=False)

    def encode_images(self, images: Tensor) -> Tensor:
        return images * self.same

    def encode_texts(self, texts: Tensor, lengths: Tensor) -> Tensor:
        return texts * self.same

    def forward(self, images: Tensor, texts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_images(images), self.encode_texts(texts, lengths)


def trajectories(world: World) -> dict[str, dict[str, Any]]:
    """Return by strategy what this rank notes."""
    return {name: _trajectory(way, world) for name, way in WAYS.items()}


def _trajectory(way: dict[str, Any], world: World) -> dict[str, Any]:
    optimizer = {"lr": 0.1, "clip_norm": None, "warmup_epochs": 0}
    config = validate({"run": {"name": "x"}, "train": way | {"global_batch": 8}, "optimizer": optimizer})
    step = TrainStep(Given(), make("siglip", scale=10.0, bias=-99.0, learn_scale=True), world.group, "fp32")
    strategy = make_strategy(config, step, world)
    rows = slice(world.rank * 4, world.rank * 4 + 4)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(8, 4, generator=generator)
    texts = images + 0.3 * torch.randn(8, 4, generator=generator)
    noted = []
    for number in range(max(LOOKS)):
        said = texts if number < TURN else texts.roll(1, dims=0)
        ids = torch.arange(8)
        pairs = Pairs(images[rows], said[rows], torch.ones(4), ids[rows], ids[rows])
        strategy.backward(strategy.forward(pairs).loss)
        strategy.update(1.0)
        if number + 1 in LOOKS:
            noted.append(step.objective.learned())
    learned = step.objective.learned()
    used = float(global_value(strategy.forward(pairs).loss, world.group))
    again = make("siglip", **learned)(images[rows], said[rows], group=world.group)
    masters = [
        bool(torch.equal(part.hp_fragment, part.lp_fragment))
        for parameter in step.objective.parameters()
        if (part := getattr(parameter, "_hp_mapping", None)) is not None
    ]
    saved = {key: value.double().item() for key, value in step.objective.state_dict().items()}
    losses = [used, float(global_value(again, world.group))]
    with CommDebugMode() as copying:
        strategy.weights(step.encoder)
        strategy.moments()
    with CommDebugMode() as gathering, strategy.whole(step.encoder):
        pass
    collectives = [copying.get_total_counts(), gathering.get_total_counts()]
    return {"noted": noted, "losses": losses, "masters": masters, "saved": saved, "collectives": collectives}
