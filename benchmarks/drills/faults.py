"""What is done to a run at a step drawn from a window. Each fault shows that it fired: who was there, and trained."""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from allpairs.hashes import HASHES, files_in
from benchmarks.drills.disturbed import DisturbedRun, DrillError
from benchmarks.drills.setting import STEPS

DAMAGED = re.compile(r"checkpoint (step-\d+) is not what was written \(.*\); going on from the one before, (step-\d+)")

# Sooner than Ray learns of the process its peer may see the connection close.
LOST = re.compile(
    r"rank (\d+) on \S+ was lost \((?:its process died|connection closed)\).*: "
    r"restart \d+ of \d+, from (?:the start|step ([\d,]+))"
)


@dataclass(frozen=True)
class Fired:
    """A fault that fired."""

    what: str
    step: int
    """The last step trained before it."""
    lost: int
    """Steps that were trained again."""
    seconds: float
    """From the fault to the first step beyond `step`."""


def kill_worker(run: DisturbedRun, window: range, draw: random.Random) -> Fired:
    """SIGKILL to the process of one rank."""
    run.train_until(draw.choice(window))
    rank = draw.randrange(len(run.workers()))
    process = run.workers()[rank]
    with _restarted(run, f"SIGKILL of rank {rank}", (rank,)) as fired:
        _kill(process)
    return fired[0]


def kill_in_checkpoint(run: DisturbedRun, window: range, draw: random.Random) -> Fired:
    """SIGKILL to one rank or both while a checkpoint is being written: its hidden folder is there, its name is not."""
    run.train_until(draw.choice(window))
    ranks = draw.choice([(0,), (1,), (0, 1)])
    workers = run.workers()
    chosen = [workers[rank] for rank in ranks]
    temporary = _stop_while_writing(run, chosen)
    with _restarted(run, f"SIGKILL of {ranks} while {temporary.name} was written", ranks) as fired:
        for process in chosen:
            _kill(process)
        if (temporary.parent / temporary.name[1:]).exists():
            raise DrillError(f"the fault did not fire: {temporary.name} was whole before")
    return fired[0]


def _stop_while_writing(run: DisturbedRun, processes: list[psutil.Process]) -> Path:
    """Stop `processes` at a moment when a checkpoint is half written; return its folder."""
    began = run.step()  # what an earlier fault has left is of a step before
    found: list[Path] = []

    def is_there() -> bool:
        folders = run.directory.checkpoints.glob(".step-*")
        found[:] = [folder for folder in folders if int(folder.name.removeprefix(".step-")) >= began]
        return bool(found)

    while True:
        run.wait("checkpoint being written", is_there, pause=0.0005)
        for process in processes:
            process.suspend()
        time.sleep(0.02)
        if found[0].exists():
            return found[0]
        for process in processes:
            process.resume()


def kill_driver(run: DisturbedRun, window: range, draw: random.Random) -> Fired:
    """SIGKILL to the command; what it had started must end by itself, and `--resume` goes on."""
    run.train_until(draw.choice(window))
    run.workers()
    started = time.monotonic()
    _kill(psutil.Process(run.pid))
    if run.ended() != -signal.SIGKILL:
        raise DrillError("the fault did not fire: the command had ended")
    return _gone_on(run, "SIGKILL of the driver", started)


def terminate(run: DisturbedRun, window: range, draw: random.Random, *overrides: str) -> Fired:
    """SIGTERM to the command: a checkpoint at the step, exit code 143; `--resume` goes on."""
    run.train_until(draw.choice(window))
    to_group = bool(draw.randrange(2))
    started = _stopped(run, os.killpg if to_group else os.kill)
    fired = _gone_on(run, f"SIGTERM{' to the process group' if to_group else ''}", started, *overrides)
    if fired.lost:
        raise DrillError(f"SIGTERM lost {fired.lost} steps")
    return fired


def resize(run: DisturbedRun, window: range, draw: random.Random) -> Fired:
    """SIGTERM and `--resume` with one worker, then again with three."""
    half = len(window) // 2
    first = terminate(run, window[:half], draw, "cluster.workers=1")
    second = terminate(run, window[half:], draw, "cluster.workers=3")
    sizes = [len(event["ranks"]) for event in run.events("placed")][-2:]
    if sizes != [1, 3]:
        raise DrillError(f"not resized: {sizes}")
    what = f"SIGTERM and 1 worker, then 3 after step {second.step}"
    return Fired(what, first.step, 0, max(first.seconds, second.seconds))


def truncate(run: DisturbedRun, window: range, draw: random.Random) -> Fired:
    """SIGTERM, then one file of the last checkpoint is cut, or a byte of it flipped, at a twentieth of its length."""
    run.train_until(draw.choice(window))
    started = _stopped(run)
    folder = run.directory.checkpoints / "last"
    last, previous = (str((folder.parent / link).readlink()) for link in ("last", "previous"))
    name = draw.choice([*files_in(folder), HASHES])
    content = (folder / name).read_bytes()
    place = min(len(content) - 1, len(content) * draw.randrange(20) // 20)
    cut = bool(draw.randrange(2))
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    (folder / name).write_bytes(content[:place] if cut else flipped)
    earlier = len(run.events("note"))
    what = f"{name} {'cut' if cut else 'flipped'} at {place:,} of {len(content):,}"
    fired = _gone_on(run, what, started, kept=int(previous.removeprefix("step-")))
    told = [match.groups() for event in run.events("note")[earlier:] if (match := DAMAGED.fullmatch(event["text"]))]
    if told != [(last, previous)]:
        raise DrillError(f"{fired.what}: not told in one line that {previous} is used instead of {last}: {told}")
    return fired


def _kill(process: psutil.Process) -> None:
    """SIGKILL to a process that is alive, and its end."""
    if process.status() == psutil.STATUS_ZOMBIE:
        raise DrillError(f"the fault did not fire: process {process.pid} had ended")
    process.kill()


@contextmanager
def _restarted(run: DisturbedRun, what: str, ranks: tuple[int, ...]) -> Iterator[list[Fired]]:
    """Kill `ranks` within the block; then wait until Ray has started others and they are beyond where training was."""
    placed, restarts = len(run.events("placed")), len(run.events("restart"))
    fired: list[Fired] = []
    run.watch_family()
    _still_trains(run)
    started = time.monotonic()
    yield fired
    run.wait("restart", lambda: len(run.events("restart")) > restarts)
    step = run.step()
    text = run.events("restart")[-1]["text"]
    found = LOST.match(text)
    if found is None or int(found[1]) not in ranks:
        raise DrillError(f"told otherwise: {text}")
    kept = int((found[2] or "0").replace(",", ""))
    run.wait(f"step after {step}", lambda: len(run.events("placed")) > placed and run.step() > step)
    fired.append(Fired(what, step, step - kept, time.monotonic() - started))


def _stopped(run: DisturbedRun, send: Callable[[int, int], None] = os.kill) -> float:
    """Send SIGTERM to the command and wait for its end; return when it was sent."""
    run.workers()
    _still_trains(run)
    started = time.monotonic()
    send(run.pid, signal.SIGTERM)
    code = run.ended()
    saved, step = run.directory.last_step(), run.step()
    said = f"stopped after step {saved:,} as asked, with a checkpoint; --resume auto continues"
    if code != 128 + signal.SIGTERM or saved != step or said not in run.said():
        raise DrillError(f"SIGTERM: exit code {code}, step {step}, checkpoint of step {saved}: {run.said()[-600:]}")
    return started


def _gone_on(run: DisturbedRun, what: str, started: float, *overrides: str, kept: int | None = None) -> Fired:
    """Start the command again, from the checkpoint of step `kept`; wait until it is beyond where training was."""
    step = run.step()
    kept = kept if kept is not None else run.directory.last_step() or 0
    if not 0 < step < STEPS:
        raise DrillError(f"the fault did not fire while training: step {step} of {STEPS}")
    placed = len(run.events("placed"))
    run.start(*overrides)
    run.wait(f"step after {step}", lambda: len(run.events("placed")) > placed and run.step() > step)
    return Fired(what, step, step - kept, time.monotonic() - started)


def _still_trains(run: DisturbedRun) -> None:
    if not 0 < (step := run.step()) < STEPS:
        raise DrillError(f"the fault did not fire while training: step {step} of {STEPS}")
