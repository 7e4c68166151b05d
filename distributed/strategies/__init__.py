"""How the ranks share gradients and optimiser state: one class per way, chosen by `train.strategy`.

- `ddp`, `deepspeed`: the ways.
- `optimizer`: groups of parameters and the learning rate, whatever the way.
"""

from typing import Protocol

from torch import Tensor

from distributed.config import Config
from distributed.step import Pairs, StepOutput, TrainStep
from distributed.world import World


class Strategy(Protocol):
    """What the training loop asks of a way to share work."""

    step: TrainStep
    """The module underneath, with full weights on every rank."""

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """Run one step's forward, encoding in so many `chunks`; collective."""

    def update(self, loss: Tensor, lr_factor: float) -> float:
        """Backward, average over ranks, clip, step. Return the gradient norm before clipping. Collective."""

    def save(self, folder: str) -> None:
        """Write the optimiser's state below `folder`. Collective."""

    def load(self, folder: str) -> None:
        """Restore what `save` wrote. Collective."""


def make_strategy(config: Config, step: TrainStep, world: World) -> Strategy:
    """Wrap `step` as `config.train.strategy` says."""
    if config.train.strategy == "deepspeed":
        from distributed.strategies.deepspeed import DeepSpeedZero

        return DeepSpeedZero(config, step, world)
    from distributed.strategies.ddp import DataParallel

    return DataParallel(config, step, world)
