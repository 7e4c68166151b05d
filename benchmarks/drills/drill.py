"""A drill of a kind and seed: start, disturb, wait for the end, compare with the run that nobody disturbed."""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.drills import faults
from benchmarks.drills.disturbed import DisturbedRun, DrillError
from benchmarks.drills.faults import Fired
from benchmarks.drills.outcome import check_alike, check_same
from benchmarks.drills.setting import STEPS
from distributed.run_directory import RunDirectory

Fault = Callable[[DisturbedRun, range, random.Random], Fired]

KINDS: dict[str, Fault] = {
    "worker": faults.kill_worker,
    "checkpoint": faults.kill_in_checkpoint,
    "driver": faults.kill_driver,
    "sigterm": faults.terminate,
    "resize": faults.resize,
    "truncate": faults.truncate,
}

STRATEGIES = {
    "ddp": ("train.strategy=ddp",),
    "zero1": ("train.strategy=deepspeed", "train.zero_stage=1"),
    "zero2": ("train.strategy=deepspeed", "train.zero_stage=2"),
    "zero3": ("train.strategy=deepspeed", "train.zero_stage=3"),
    "fsdp2": ("train.strategy=fsdp2",),
}

_ANY_WORLD = ("model.text.word_dropout=0",)
"""Dropout is drawn by rank, so only without it do other numbers of workers compute the same."""

_LIKELIER_TO_LEAVE = ("driver", "sigterm")
"""Kinds whose every second drill has a Ray of its own, which must end with its driver."""

_FIRST, _LAST = 16, STEPS - 20
"""Faults fall between these steps: two checkpoints are there, and training does not end under a fault."""


@dataclass(frozen=True)
class Verdict:
    """What became of a drill; `failure` is empty where it passed."""

    kind: str
    seed: int
    strategy: str
    fired: list[Fired]
    wall: float
    failure: str


def drill(kind: str, seed: int, config: Path, ray: tuple[str, int], plan: Sequence[Fault]) -> Verdict:
    """Train a run that meets the faults of `plan`, one after the other; its folder stays where it failed."""
    draw = random.Random(f"{kind}/{seed}")
    strategy = list(STRATEGIES)[seed % len(STRATEGIES)] if kind == "truncate" else "ddp"
    settings = _ANY_WORLD if kind == "resize" else STRATEGIES[strategy]
    own = kind in _LIKELIER_TO_LEAVE and seed % 2 == 1
    started = time.monotonic()
    fired: list[Fired] = []
    run = DisturbedRun(config, f"{kind}-{seed}", *settings, ray=None if own else ray)
    shutil.rmtree(run.directory.root, ignore_errors=True)
    run.output.unlink(missing_ok=True)
    try:
        whole = undisturbed(config, f"undisturbed-{'plain' if kind == 'resize' else strategy}", settings, ray)
        others = []
        if kind == "resize":
            for world in (1, 3):
                name, workers = f"undisturbed-plain-{world}", f"cluster.workers={world}"
                others.append(undisturbed(config, name, (*settings, workers), ray))
        started = time.monotonic()
        run.start()
        part = (_LAST - _FIRST) // len(plan)
        for number, fault in enumerate(plan):
            fired.append(fault(run, range(_FIRST + part * number, _FIRST + part * (number + 1)), draw))
        _finish(run)
        if others:
            check_alike(run.directory, whole, others)
        else:
            check_same(run.directory, whole)
    except (DrillError, OSError) as failure:
        run.kill_all()
        return Verdict(kind, seed, strategy, fired, time.monotonic() - started, f"{failure}")
    except KeyboardInterrupt:
        run.kill_all()
        raise
    shutil.rmtree(run.directory.root)
    return Verdict(kind, seed, strategy, fired, time.monotonic() - started, "")


def undisturbed(config: Path, name: str, settings: tuple[str, ...], ray: tuple[str, int]) -> RunDirectory:
    """Return a run that nobody disturbs; trained once."""
    run = DisturbedRun(config, name, *settings, ray=ray)
    if not run.directory.summary.exists():
        shutil.rmtree(run.directory.root, ignore_errors=True)
        run.output.unlink(missing_ok=True)
        run.start()
        try:
            _finish(run)
        except DrillError as failure:
            run.kill_all()
            raise SystemExit(f"{name}: {failure}") from None
        except KeyboardInterrupt:
            run.kill_all()
            raise
    return run.directory


def _finish(run: DisturbedRun) -> None:
    if (code := run.ended()) or "Traceback" in run.said():
        raise DrillError(f"exit code {code}: {run.said()[-600:]}")
