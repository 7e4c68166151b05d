"""What Weights & Biases lacks of a run, told to it from metrics.jsonl; nothing is sent twice."""

import subprocess
import sys
import time
from typing import Literal

from allpairs.errors import UserError
from allpairs.files import existing, read_json
from distributed.config import Config
from distributed.config.load import read, validate
from distributed.run_directory import RunDirectory
from distributed.tracking.segments import Segment, mend, segments
from distributed.tracking.server import ask
from distributed.tracking.wandb_run import WandbRun

ALIVE = 60.0
"""A run whose ranks wrote a heartbeat within so many seconds is not over."""


def sync(run: RunDirectory, *, upload: bool = False, failed: bool | None = None, over: bool = False) -> str:
    """Complete what W&B holds of `run`, a run that no process tracks now, and say what was done.

    An offline run's files are brought to an end, and rows that none of them holds go to a new one; with `upload` they
    are then sent to the server. A run that streamed is sent on from where the server stands. `failed` marks the run,
    as a rule where it has no summary; `over` says that it has ended, which else a heartbeat may deny.

    Raises:
        UserError: it is no run, is not tracked, still trains, or the server cannot be reached.
    """
    config = validate(read(existing(run.config)), source=str(run.config))
    if not over and _alive(run):
        raise UserError(f"{run.root} is training; accepted is a run that has ended ({ALIVE:g} s without a heartbeat)")
    if config.tracking.wandb == "disabled" and not upload:
        raise UserError(f"{run.root} has tracking.wandb=disabled; accepted: --upload, which sends its metrics.jsonl")
    if config.tracking.wandb == "online" or upload:
        try:
            ask()
        except UserError as error:
            raise UserError(f"{run.root}: {error}") from None
    rows = run.history()
    failed = run.read_summary() is None if failed is None else failed
    told = any(file.exit_code == 0 for file in segments(run))
    files = mend(run, keep=None, exit_code=int(failed))
    streamed = config.tracking.wandb == "online" or any(file.online for file in files)
    if streamed and (upload or config.tracking.wandb == "online"):
        return f"{_replay(config, run, 'online', failed)} row(s) sent"
    missing = set(range(len(rows))) - {step for file in files for step in file.rows}
    if missing or not (failed or told):  # where nothing failed, W&B is to hear that
        _replay(config, run, "offline", failed)
    done = f"{len(missing)} row(s) added to W&B's files"
    if not upload:
        return done
    return f"{done}, {_send([file for file in segments(run) if not file.sent])} file(s) sent"


def _replay(config: Config, run: RunDirectory, mode: Literal["online", "offline"], failed: bool) -> int:
    """Track `run` once more, for nothing but the rows W&B lacks; return how many."""
    tracking = config.tracking.model_copy(update={"wandb": mode})
    facts = read_json(run.provenance) if run.provenance.exists() else {}
    tracked = WandbRun(config.model_copy(update={"tracking": tracking}), run, facts, over=True)
    tracked.close(run.read_summary(), failed=failed)
    if run.tracking_note.exists():
        raise UserError(f"{run.root}: {run.tracking_note.read_text(encoding='utf-8')}")
    return tracked.replayed


def _send(files: list[Segment]) -> int:
    """Hand `files` to `wandb sync`, which sends segments of one run in their order."""
    if not files:
        return 0
    command = [sys.executable, "-m", "wandb", "sync", *(str(file.file) for file in files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    unsent = [file.file for file in files if not file.marker.exists()]
    if unsent:
        last = (result.stdout + result.stderr).strip().splitlines()[-1:]
        raise UserError(f"`wandb sync` did not send {unsent[0]}: {' '.join(last)}")
    return len(files)


def _alive(run: RunDirectory) -> bool:
    beats = run.heartbeats.glob("*.json")
    return any(time.time() - beat.stat().st_mtime < ALIVE for beat in beats)
