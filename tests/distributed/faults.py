"""What goes wrong on one rank alone, put into this process: for ranks of torchrun and for workers of Ray."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from allpairs.errors import UserError
from distributed.config import Config, validate
from distributed.data import Dataset, RawSample
from distributed.loop import Training
from distributed.world import is_shared

FAULTY_RANK = 1
AFTER = 2
"""Faults of the training itself begin after so many steps."""


def nan_weights(config: Config, patch: pytest.MonkeyPatch) -> Config:
    """A weight is not a number."""

    def poison(training: Training) -> None:
        _note(config)
        with torch.no_grad():
            next(training.encoder.parameters()).fill_(float("nan"))

    _before_a_step(poison, patch)
    return config


def nan_gradient(config: Config, patch: pytest.MonkeyPatch) -> Config:
    """The image encoder's layer meets NaN from behind."""

    def meet_nan(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    def poison(training: Training) -> None:
        _note(config)
        training.strategy.step.encoder.image.embedding.register_forward_hook(meet_nan)

    _before_a_step(poison, patch)
    return config


def bent_weight(config: Config, patch: pytest.MonkeyPatch) -> Config:
    """An update changes one number of the first parameter that all ranks hold whole, here alone."""

    def bend(training: Training) -> None:
        update = training.strategy.update
        whole = [weight for weight in training.strategy.step.parameters() if not is_shared(weight)]

        def bent(factor: float) -> float:
            norm = update(factor)
            _note(config)
            with torch.no_grad():
                whole[0].view(-1)[-1:] += 1e-3
            return norm

        patch.setattr(training.strategy, "update", bent)

    _before_a_step(bend, patch)
    return config


def another_decay(config: Config, patch: pytest.MonkeyPatch) -> Config:
    """The optimiser's weight decay changes under way."""

    def change(training: Training) -> None:
        _note(config)
        training.strategy.groups[0]["weight_decay"] *= 2

    _before_a_step(change, patch)
    return config


def another_schedule(config: Config, patch: pytest.MonkeyPatch) -> Config:
    """The learning rate follows another schedule, as with other code: from the third step on it is twice as high."""
    factor = Training._learning_rate_factor

    def doubled(self: Training, step: int) -> float:
        if step < AFTER:
            return factor(self, step)
        _note(config)
        return 2 * factor(self, step)

    patch.setattr(Training, "_learning_rate_factor", doubled)
    return config


def another_rate(config: Config, patch: pytest.MonkeyPatch) -> Config:
    """The configuration has another learning rate."""
    _note(config)
    optimizer = config.optimizer.model_copy(update={"lr": 2 * config.optimizer.lr})
    return config.model_copy(update={"optimizer": optimizer})


def broken_shard(config: Config, patch: pytest.MonkeyPatch) -> Config:
    """The shards of the training split, as this rank sees them, were cut off in the middle after they were opened."""
    begin, read = Dataset.__init__, Dataset.read

    def cut(self: Dataset, *arguments: Any) -> None:
        begin(self, *arguments)
        if self.folder == config.data.folder("train"):
            folder = config.run_dir / "cut"
            folder.mkdir(exist_ok=True)
            self._files = [Path(shutil.copy(file, folder)) for file in self._files]
            for file in self._files:
                with file.open("r+b") as stream:
                    stream.truncate(file.stat().st_size // 2)

    def noted(self: Dataset, row: int) -> RawSample:
        try:
            return read(self, row)
        except UserError:
            _note(config)
            raise

    patch.setattr(Dataset, "__init__", cut)
    patch.setattr(Dataset, "read", noted)
    return config


def _note(config: Config) -> None:
    """Leave in the run's folder when the fault was met."""
    (config.run_dir / "fault").touch()


def _before_a_step(harm: Callable[[Training], None], patch: pytest.MonkeyPatch) -> None:
    step = Training._step

    def harmed(self: Training, *arguments: Any) -> None:
        if self.progress.step == AFTER:
            harm(self)
        step(self, *arguments)

    patch.setattr(Training, "_step", harmed)


FAULTS = {
    fault.__name__: fault
    for fault in (
        nan_weights,
        nan_gradient,
        bent_weight,
        another_decay,
        another_schedule,
        another_rate,
        broken_shard,
    )
}


@contextmanager
def harmed(config: Config, rank: int) -> Iterator[Config]:
    """Give the configuration that a rank trains with inside the block; a run named after a fault has it on rank 1.

    What follows a hyphen in the name tells runs with the same fault apart.
    """
    fault = FAULTS.get(config.run.name.partition("-")[0])
    if fault is None or rank != FAULTY_RANK:
        yield config
        return
    with pytest.MonkeyPatch.context() as patch:
        yield fault(config, patch)


def harmed_worker(settings: dict[str, Any]) -> None:
    """What Ray Train runs on every worker, with the fault on one."""
    import ray.train

    from distributed.worker import train_worker

    with harmed(validate(settings["config"]), ray.train.get_context().get_world_rank()) as config:
        train_worker(settings | {"config": config.model_dump(mode="json")})
