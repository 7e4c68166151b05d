"""How the ranks share gradients and optimiser state: one class per way, chosen by `train.strategy`.

- `ddp`, `deepspeed`, `zero3`, `fsdp2`: the ways.
- `moments`: the optimiser's state on disk, the same for every way.
- `optimizer`: groups of parameters and the learning rate, whatever the way.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from allpairs.models.pieces import WeightPiece
from distributed.config import Config
from distributed.step import Pairs, StepOutput, TrainStep
from distributed.strategies.moments import Piece, SavedMoments
from distributed.world import World


class Strategy(Protocol):
    """What the training loop asks of a way to share work."""

    step: TrainStep
    """The module underneath; the objective is whole on every rank, the encoder within `whole`."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups of parameters, with the settings they have now."""

    shares_weights: bool
    """Whether each rank holds a part of the encoder's weights alone."""

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """Run one step's forward, encoding in so many `chunks`; collective."""

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, averaged over ranks, in the place of those of the step before. Collective."""

    def update(self, lr_factor: float) -> float:
        """Clip, step. Return the gradient norm before clipping. Collective.

        Raises:
            NonFiniteGradients: on all ranks, before any weight was changed.
        """

    def place(self, encoder: nn.Module) -> None:
        """Lay out another encoder (an average) as the trained one is laid out. Collective."""

    def whole(self, encoder: nn.Module) -> AbstractContextManager[None]:
        """Hold an encoder's weights whole on every rank within the block: for evaluations. Collective."""

    def weights(self, encoder: nn.Module) -> list[WeightPiece]:
        """Copy, on the CPU, the part of an encoder's weights that this rank keeps. Waits for nobody.

        Where ranks do not share the weights that is everything on rank 0, and nothing elsewhere.
        """

    def load_weights(self, encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Have an encoder take `weights`, all of which every rank has."""

    def moments(self) -> list[Piece]:
        """Copy, on the CPU, the part of the optimiser's state that this rank keeps. Waits for nobody."""

    def load_moments(self, saved: SavedMoments) -> None:
        """Restore this rank's part of what any strategy and any number of ranks kept. Waits for nobody."""


def make_strategy(config: Config, step: TrainStep, world: World) -> Strategy:
    """Wrap `step` as `config.train.strategy` says."""
    if config.train.strategy == "deepspeed" and config.train.zero_stage == 3:
        from distributed.strategies.zero3 import ZeroStage3

        return ZeroStage3(config, step, world)
    if config.train.strategy == "deepspeed":
        from distributed.strategies.deepspeed import DeepSpeedZero

        return DeepSpeedZero(config, step, world)
    if config.train.strategy == "fsdp2":
        from distributed.strategies.fsdp2 import FullyShardedDataParallel

        return FullyShardedDataParallel(config, step, world)
    from distributed.strategies.ddp import DataParallel

    return DataParallel(config, step, world)
