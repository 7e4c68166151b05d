"""Checkpoints of a run: written whole or not at all, and never read when they are not what was written.

checkpoints/
  step-00000120/   the model (allpairs.models: weights, description, words, preprocessing), the optimiser's state
                   (strategies.moments), objective.safetensors (learned scale), position.json, and hashes.json of all;
                   with train.ema_decay the model is the average, and trained.safetensors what training goes on with;
                   of ranks that share the weights each writes its part: model/rank-*.safetensors in the place of
                   model.safetensors, trained/ in that of trained.safetensors (allpairs.models.pieces);
                   with train.recipe=ncr it is both nets, and division.safetensors what this epoch makes of the pairs
  last -> step-00000120, previous -> step-00000100, best -> step-00000090      relative links, replaced atomically

What no link names is deleted: a run keeps three checkpoints at most, each three times the size of its weights, four
times with an average.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from allpairs import models
from allpairs.errors import UserError
from allpairs.files import existing, replacing_folder, unwritable
from allpairs.hashes import HASHES, Hashes, check_files, files_in, hash_files, read_hashes, write_hashes
from allpairs.models import DualEncoder, ModelSpec, Tokens
from allpairs.models.pieces import (
    WeightPiece,
    rank_file,
    read_weights,
    write_pieces,
    write_weights,
)
from allpairs.objectives import PairObjective
from distributed.average import Average
from distributed.strategies import Strategy
from distributed.strategies.moments import FOLDER as OPTIMIZER
from distributed.strategies.moments import Piece, SavedMoments, copied_weights, write_moments
from distributed.world import Stopped, World

LAST, PREVIOUS, BEST = "last", "previous", "best"
OBJECTIVE, POSITION, TRAINED = "objective.safetensors", "position.json", "trained"
BY_RANK = (models.MODEL, TRAINED, OPTIMIZER)
"""Folders in which each rank writes its part."""


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
    best_epoch: float | None = None
    workers: int | None = None
    """How many ranks trained up to here."""
    certificate: str = ""
    """The chain over the samples of all steps so far (`distributed.certificate`)."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Samples that could not be used, by cause; each counts every time it was to be read."""


@dataclass(frozen=True)
class _Copy:
    """What a checkpoint is written from, on the CPU: training goes on with the originals."""

    encoder: DualEncoder
    """For its description alone."""
    weights: list[WeightPiece]
    averaged: list[WeightPiece] | None
    in_pieces: bool
    """Whether other ranks keep the rest of the weights."""
    objective: list[WeightPiece]
    moments: list[Piece]
    position: str
    also: Callable[[Path], None] | None


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that a thread writes."""

    step: int
    temporary: Path
    final: Path
    best: bool
    work: Future[Hashes]


class Checkpoints:
    """The `checkpoints/` folder of one run.

    `tell` hears, on rank 0, what a person should know of them; `also` gives what a recipe writes into one, there too
    and in a thread.
    """

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        vocabulary: Tokens,
        world: World,
        *,
        tell: Callable[[str], None] = lambda text: None,
        average: Average | None = None,
        also: Callable[[], Callable[[Path], None] | None] = lambda: None,
    ) -> None:
        self._also = also
        self._average = average
        self._folder = folder
        self._spec = spec
        self._vocabulary = vocabulary
        self._world = world
        self._tell = tell if world.rank == 0 else lambda text: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None

    def save(self, strategy: Strategy, progress: Progress, *, best: bool) -> None:
        """Copy what is to be kept and let a thread write it, so that training goes on; `publish` ends it. Collective.

        Order: copies on the CPU; everything into a hidden folder, each rank its part, flushed to disk and hashed; then,
        by `publish`, the hashes; rename; move the links `last` (and `best`); delete what no link names. A crash at any
        point leaves the links on complete checkpoints.

        Raises:
            Stopped: on all ranks, where any could not write (a full disk) this one or the one that was still being
                written; the checkpoints before are as they were.
        """
        self.wait()
        final = self._folder / f"step-{progress.step:08d}"
        temporary = self._folder / f".{final.name}"
        with self._writing(progress.step, temporary):
            if self._world.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        write = partial(self._write, temporary, self._copy(strategy, progress))
        self._pending = _Pending(progress.step, temporary, final, best, self._thread.submit(write))

    def _copy(self, strategy: Strategy, progress: Progress) -> "_Copy":
        """Copy all that belongs to this moment. Waits for nobody."""
        weights = strategy.weights(strategy.step.encoder)
        averaged = None if self._average is None else strategy.weights(self._average.encoder)
        objective = copied_weights(strategy.step.objective)
        position = json.dumps(asdict(progress), indent=1)
        return _Copy(
            strategy.step.encoder,
            weights,
            averaged,
            strategy.shares_weights,
            objective,
            strategy.moments(),
            position,
            self._also(),
        )

    def _write(self, folder: Path, copy: "_Copy") -> Hashes:
        """Write this rank's files, have the disk hold them, and return their hashes; in a thread."""
        rank = self._world.rank
        write_moments(folder, copy.moments, rank)
        self._write_weights(folder, models.MODEL, copy.weights if copy.averaged is None else copy.averaged, copy)
        if copy.averaged is not None:
            self._write_weights(folder, TRAINED, copy.weights, copy)
        if rank == 0:
            models.save_description(folder, copy.encoder, self._spec, self._vocabulary)
            write_weights(folder, Path(OBJECTIVE).stem, copy.objective)
            (folder / POSITION).write_text(copy.position, encoding="utf-8")
            if copy.also is not None:
                copy.also(folder)
        mine = {rank_file(name, rank) for name in BY_RANK}
        # In these folders other ranks are still writing, and files come and go.
        ours = [name for name in files_in(folder) if name.partition("/")[0] not in BY_RANK] if rank == 0 else []
        names = [*ours, *(name for name in sorted(mine) if (folder / name).exists())]
        _flush([folder / name for name in names])
        return hash_files(folder, names)

    def _write_weights(self, folder: Path, name: str, pieces: list[WeightPiece], copy: "_Copy") -> None:
        if copy.in_pieces:
            write_pieces(folder, name, pieces, self._world.rank)
        elif self._world.rank == 0:
            write_weights(folder, name, pieces)

    @property
    def written(self) -> bool:
        """Whether this rank has written its part of a checkpoint that is to be published."""
        return self._pending is not None and self._pending.work.done()

    def wait(self) -> None:
        """Publish what is still being written, if anything. Collective.

        Raises:
            Stopped: on all ranks, where any could not write.
        """
        if self._pending is not None:
            self.publish()

    def publish(self) -> None:
        """Make the checkpoint that `save` began the last one; waits for its files. Collective.

        Raises:
            Stopped: on all ranks, where any could not write; the checkpoints before are as they were.
        """
        assert self._pending is not None, "nothing is being written"
        pending, self._pending = self._pending, None
        hashes: Hashes = {}
        with self._writing(pending.step, pending.temporary):
            hashes = pending.work.result()
        parts = self._world.gather(hashes)
        with self._writing(pending.step, pending.temporary):
            if self._world.rank == 0:
                write_hashes(pending.temporary, dict(sorted(entry for part in parts for entry in part.items())))
                self._make_last(pending.temporary, pending.final, best=pending.best)

    def restore(self, strategy: Strategy, found: "Found") -> Progress:
        """Load what `strategy` and its objective had learned at a checkpoint; return where it stands. Collective.

        The encoder comes from there already.

        Raises:
            Stopped: on all ranks, where what was written doesn't fit this run.
        """
        folder = found.folder
        self._world.together(lambda: load_objective(folder, strategy.step.objective))
        self._world.together(lambda: strategy.load_moments(SavedMoments(folder)))
        progress = self._world.together(lambda: read_progress(folder))
        if found.best_is_lost:
            progress.best_rsum = progress.best_epoch = None  # the best of those to come
        return progress

    def load_best(self, strategy: Strategy) -> str:
        """Load the weights of `best`, or of `last` where it isn't what was written; return which it is. Collective.

        Raises:
            Stopped: on all ranks, where neither can be loaded.
        """
        links = self._world.gather(_links(self._folder))[0]
        reasons: list[str] = []
        for link in (BEST, LAST) if links.get(BEST) != links.get(LAST) else (BEST,):
            folder = self._folder / links.get(link, link)
            reason = self._world.agree(_mistake(partial(self._load_weights, strategy, folder)))
            if reason is None:
                if reasons:
                    self._tell(f"the best checkpoint cannot be used ({reasons[0]}): the last one is measured instead")
                return link
            reasons.append(reason)
        raise Stopped("; ".join(reasons))

    def export(self, name: str, folder: Path) -> None:
        """Write the model of checkpoint `name` into `folder`, whole: what others load. On rank 0.

        Raises:
            UserError, OSError: a file of it is not what was written, or it cannot be written.
        """
        source = self._folder / name
        with replacing_folder(folder) as fresh:
            models.export(source, fresh)
            shutil.copyfile(source / OBJECTIVE, fresh / OBJECTIVE)
            write_hashes(fresh, hash_files(fresh, files_in(fresh)))

    def step_of(self, name: str) -> int:
        """Return the step at which checkpoint `name` was written."""
        return read_progress(self._folder / name).step

    @contextmanager
    def _writing(self, step: int, temporary: Path) -> Iterator[None]:
        """Have all ranks stop together where one of them cannot write. Collective, at the block's end."""
        reason = None
        try:
            try:
                yield
            except (OSError, RuntimeError, SafetensorError) as error:
                why = unwritable(error)
                if why is None:
                    raise
                reason = (
                    f"the checkpoint of step {step:,} cannot be written to {self._folder} ({why}); those before it are "
                    "whole: make room, and go on with --resume auto"
                )
            self._world.stop_together(reason)
        except BaseException:
            if self._world.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _load_weights(self, strategy: Strategy, folder: Path) -> None:
        encoder, _ = models.load(folder)
        evaluated = strategy.step.encoder if self._average is None else self._average.encoder
        strategy.load_weights(evaluated, encoder.state_dict())
        load_objective(folder, strategy.step.objective)

    def _make_last(self, temporary: Path, final: Path, *, best: bool) -> None:
        _flush([temporary / HASHES, *(path for path in temporary.rglob("*") if path.is_dir()), temporary])
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        before = _links(self._folder).get(LAST)
        if before is not None and before != final.name:
            _point(self._folder, PREVIOUS, before)
        _point(self._folder, LAST, final.name)
        if best:
            _point(self._folder, BEST, final.name)
        named = {self._folder / name for name in _links(self._folder).values()}
        for folder in self._folder.glob("*step-*"):
            if folder not in named:
                shutil.rmtree(folder)


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from."""

    folder: Path
    best_is_lost: bool
    """Whether the best one cannot be used any more."""


def find_usable(folder: Path, world: World, tell: Callable[[str], None]) -> Found | None:
    """Return the newest checkpoint in `folder` that is what was written, the same on all ranks. Collective.

    `last` gives way to `previous`, and that to `best`: then the links are moved, and `tell` hears on rank 0 what was
    passed over. None where there is no checkpoint yet.

    Raises:
        Stopped: on all ranks, where none can be used.
    """
    links = world.gather(_links(folder))[0]
    if not links:
        return None
    faults: dict[str, str] = {}
    for name in dict.fromkeys(links[link] for link in (LAST, PREVIOUS, BEST) if link in links):
        fault, compared = _compare(folder / name, world)
        if fault is None:
            break
        faults[name] = fault
    else:
        raise Stopped(f"no checkpoint can be used: {'; '.join(faults.values())}; start anew under another run.name")
    lost = links.get(BEST) in faults
    if world.rank == 0 and faults:
        what = "; ".join(faults.values())
        tell(f"checkpoint {', '.join(faults)} is not what was written ({what}); going on from the one before, {name}")
        _point(folder, LAST, name)
        if lost:
            _point(folder, BEST, name)
    if world.rank == 0 and not compared:
        tell(f"checkpoint {name} was written without hashes, so its files are not verified")
    return Found(folder / name, lost)


def _compare(folder: Path, world: World) -> tuple[str | None, bool]:
    """Compare a checkpoint with its hashes, each rank its share of the files. Collective.

    Returns what is wrong, the same on all ranks, and whether there were hashes to compare with.
    """
    compared = False

    def compare() -> None:
        nonlocal compared
        if not folder.is_dir():
            raise UserError(f"checkpoint {folder}: not there")
        hashes = read_hashes(folder)
        compared = hashes is not None and check_files(folder, _share(sorted(hashes), world))

    return world.agree(_mistake(compare)), compared


def _share(names: list[str], world: World) -> list[str]:
    """Return the part of `names` that this rank hashes."""
    return names[world.rank :: world.size]


def _links(folder: Path) -> dict[str, str]:
    """Return the folder that each link in `folder` names, whether that is there or not."""
    links = {}
    for link in (LAST, PREVIOUS, BEST):
        path = folder / link
        if path.is_symlink():
            links[link] = str(path.readlink())
        elif path.is_dir():  # a copy of the run without links
            links[link] = link
    return links


def _point(folder: Path, name: str, target: str) -> None:
    link = folder / f".{name}"
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    link.replace(folder / name)


def load_objective(folder: Path, objective: PairObjective[Any]) -> None:
    """Load what `objective` had learned at the checkpoint in `folder`."""
    path = folder / OBJECTIVE
    check_files(folder, (OBJECTIVE,))
    try:
        objective.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this objective ({str(error).splitlines()[0]})") from None


def checkpoint_of(folder: str) -> Path:
    """Return the checkpoint that `model.init_from` names: a run's best one, else its last, or the folder itself.

    Raises:
        UserError: there is none, or this version cannot build its model.
    """
    try:
        path = existing(Path(folder).expanduser())
    except UserError as error:
        raise UserError(f"model.init_from: {error}") from None
    for candidate in (path / "checkpoints/best", path / "checkpoints/last", path):
        if (candidate / models.DESCRIPTION).is_file():
            try:
                models.read_spec(candidate)
            except UserError as error:
                raise UserError(f"model.init_from: {error}") from None
            return candidate.resolve()
    raise UserError(f"model.init_from: {folder} is neither a run with a checkpoint nor a checkpoint")


def load_trained(folder: Path, encoder: DualEncoder) -> None:
    """Load the weights that training goes on with, where those evaluated are their moving average."""
    path = folder / f"{TRAINED}.safetensors"
    check_files(folder, (TRAINED, path.name))
    try:
        encoder.load_state_dict(read_weights(folder, TRAINED))
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of this model ({' '.join(str(error).split())})") from None


def start_from(folder: Path, encoder: DualEncoder, objective: PairObjective[Any], given: Collection[str]) -> None:
    """Load the encoder's weights from the checkpoint in `folder`, and a learned scale unless it is among the `given`.

    Raises:
        UserError: it holds another model, or other bytes than were written.
    """
    path = folder / models.WEIGHTS
    check_files(folder, (models.WEIGHTS, models.MODEL, OBJECTIVE))
    try:
        encoder.load_state_dict(read_weights(folder, models.MODEL))
    except UserError as error:
        raise UserError(f"model.init_from: {error}") from None
    except RuntimeError as error:
        raise UserError(f"model.init_from: {path} does not fit this model: {' '.join(str(error).split())}") from None
    if objective.learned() and not objective.learned().keys() & set(given):
        learned = load_file(folder / OBJECTIVE)
        if learned.keys() == objective.state_dict().keys():
            objective.load_state_dict(learned)


def read_progress(folder: Path) -> Progress:
    """Return where training stood at the checkpoint in `folder`; UserError where it does not say."""
    path = folder / POSITION
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable training position ({error})") from None


def _mistake(work: Callable[[], None]) -> str | None:
    try:
        work()
    except UserError as error:
        return str(error)
    return None


def _flush(paths: Iterable[Path]) -> None:
    """Have the disk hold these files and folders before a rename makes them visible."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
