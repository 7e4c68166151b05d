"""Checkpoints of a run: written whole or not at all, `last` and `best` always point to complete ones.

checkpoints/
  step-00000120/   the model (allpairs.models: weights, description, words, preprocessing), the strategy's optimiser
                   state, objective.safetensors (learned scale), position.json
  last -> step-00000120, best -> step-00000090      relative links, replaced atomically
"""

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from allpairs import models
from allpairs.errors import UserError
from allpairs.files import existing, replacing
from allpairs.models import DualEncoder, ModelSpec, Tokens
from allpairs.objectives import PairObjective
from distributed.strategies import Strategy
from distributed.world import World


@dataclass
class Progress:
    """Where training stands: everything beside tensors that resuming needs."""

    step: int = 0
    epoch: int = 0
    sample: int = 0
    """Position inside `epoch`: samples of it that all ranks together have consumed."""
    samples_seen: int = 0
    train_seconds: float = 0.0
    """Time inside training steps, waiting for data included, evaluation and checkpoints not."""
    best_rsum: float | None = None
    best_epoch: int | None = None


class Checkpoints:
    """The `checkpoints/` folder of one run."""

    def __init__(self, folder: Path, spec: ModelSpec, vocabulary: Tokens, world: World) -> None:
        self._folder = folder
        self._spec = spec
        self._vocabulary = vocabulary
        self._world = world

    def save(self, strategy: Strategy, progress: Progress, *, best: bool) -> None:
        """Write a checkpoint and move `last` (and `best`) to it. Collective.

        Order: everything into a hidden folder, flushed to disk; rename; move the links; delete what no link names.
        A crash at any point leaves the links on complete checkpoints.
        """
        final = self._folder / f"step-{progress.step:08d}"
        temporary = self._folder / f".{final.name}"
        if self._world.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._world.barrier()
        strategy.save(str(temporary))
        if self._world.rank == 0:
            models.save(temporary, strategy.step.encoder, self._spec, self._vocabulary)
            objective = {key: value.contiguous().cpu() for key, value in strategy.step.objective.state_dict().items()}
            with replacing(temporary / "objective.safetensors") as partial:
                save_file(objective, partial)
            (temporary / "position.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        self._world.barrier()
        if self._world.rank == 0:
            _flush(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            self._point("last", final)
            if best:
                self._point("best", final)
            self._delete_unnamed()
        # Nobody reads `best` while it moves: a rank that hurried on would load the one before, or one being deleted.
        self._world.barrier()

    def restore(self, strategy: Strategy) -> Progress | None:
        """Load `last` into `strategy` and return where it stands; None if there is no checkpoint yet. Collective."""
        folder = self._folder / "last"
        if not folder.exists():
            return None
        self.load_weights(strategy, "last")
        strategy.load(str(folder.resolve()))
        return read_progress(folder)

    def load_weights(self, strategy: Strategy, name: str) -> None:
        """Load encoder and objective weights of checkpoint `name` into `strategy`."""
        folder = self._folder / name
        encoder, _ = models.load(folder)
        strategy.step.encoder.load_state_dict(encoder.state_dict())
        load_objective(folder, strategy.step.objective)

    def step_of(self, name: str) -> int:
        """Return the step at which checkpoint `name` was written."""
        return read_progress(self._folder / name).step

    def _point(self, name: str, target: Path) -> None:
        link = self._folder / f".{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.replace(self._folder / name)

    def _delete_unnamed(self) -> None:
        named = {(self._folder / name).resolve() for name in ("last", "best")}
        for folder in self._folder.glob("*step-*"):
            if folder.resolve() not in named:
                shutil.rmtree(folder)


def load_objective(folder: Path, objective: PairObjective[Any]) -> None:
    """Load what `objective` had learned at the checkpoint in `folder`."""
    path = folder / "objective.safetensors"
    try:
        objective.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this objective ({str(error).splitlines()[0]})") from None


def checkpoint_of(folder: str) -> Path:
    """Return the checkpoint that `model.init_from` names: a run's best one, else its last, or the folder itself."""
    try:
        path = existing(Path(folder).expanduser())
    except UserError as error:
        raise UserError(f"model.init_from: {error}") from None
    for candidate in (path / "checkpoints/best", path / "checkpoints/last", path):
        if (candidate / models.DESCRIPTION).is_file():
            return candidate.resolve()
    raise UserError(f"model.init_from: {folder} is neither a run with a checkpoint nor a checkpoint")


def start_from(folder: Path, encoder: DualEncoder, objective: PairObjective[Any], given: Collection[str]) -> None:
    """Load the encoder's weights from the checkpoint in `folder`, and a learned scale unless it is among the `given`.

    Raises:
        UserError: it holds another model.
    """
    path = folder / models.WEIGHTS
    try:
        encoder.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"model.init_from: {path} does not fit this model: {' '.join(str(error).split())}") from None
    if objective.learned() and not objective.learned().keys() & set(given):
        learned = load_file(folder / "objective.safetensors")
        if learned.keys() == objective.state_dict().keys():
            objective.load_state_dict(learned)


def read_progress(folder: Path) -> Progress:
    """Return where training stood at the checkpoint in `folder`; UserError where it does not say."""
    path = folder / "position.json"
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable training position ({error})") from None


def _flush(folder: Path) -> None:
    """Have the disk hold every file of `folder` before a rename makes it visible."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
