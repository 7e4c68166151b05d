"""Is a run that was disturbed the run that nobody disturbed? Weights, certificate, and each row of metrics once."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from allpairs.models.pieces import read_weights
from benchmarks.drills.disturbed import DrillError
from benchmarks.drills.setting import STEPS
from distributed.run_directory import RunDirectory

_TIMES = re.compile(r"train/ms_|train/seconds|train/eta_seconds|train/samples_per_second|val/seconds")
"""The clock's part of a row."""


def check_same(run: RunDirectory, undisturbed: RunDirectory) -> None:
    """Raise unless weights and rows are those of the undisturbed run, bit for bit, and nothing half written is left."""
    ours, theirs = weights(run), weights(undisturbed)
    if ours.keys() != theirs.keys() or (other := [key for key in ours if not torch.equal(ours[key], theirs[key])]):
        raise DrillError(f"other weights: {', '.join(other)}")
    _check_rows(run.history(), undisturbed.history())
    _check_summary(run, undisturbed)
    _check_checkpoints(run.checkpoints)


def check_alike(run: RunDirectory, undisturbed: RunDirectory, others: list[RunDirectory]) -> None:
    """Raise unless a run that changed its number of workers is the undisturbed one but for rounding.

    What rounding makes of a run is seen at undisturbed ones with `others` numbers of workers: twice that is allowed.
    """
    allowed = 2 * max(difference(other, undisturbed) for other in others)
    found = difference(run, undisturbed)
    if found > allowed:
        raise DrillError(f"other weights: {found:.2g} away, where other numbers of workers are {allowed / 2:.2g}")
    # A change of the number of workers has a row of its own, which an undisturbed run lacks.
    rows = [_chain(row) for row in run.history() if "train/workers_before" not in row]
    _check_rows(rows, [_chain(row) for row in undisturbed.history()])
    _check_summary(run, undisturbed)
    _check_checkpoints(run.checkpoints)


def weights(run: RunDirectory) -> dict[str, Tensor]:
    """Return what a run has learned: the encoder and the scale."""
    last = run.checkpoints / "last"
    return read_weights(last, "model") | load_file(last / "objective.safetensors")


def difference(run: RunDirectory, other: RunDirectory) -> float:
    """Return how far two runs' weights are apart, as a part of their length."""
    one, two = (
        torch.cat([value.double().flatten() for _, value in sorted(weights(each).items())]) for each in (run, other)
    )
    return float((one - two).norm() / two.norm())


def _chain(row: dict[str, Any]) -> dict[str, Any]:
    """Return what must not differ under another number of workers."""
    exact = ("step", "epoch", "samples_seen", "train/certificate", "train/batch", "train/learning_rate")
    return {key: row[key] for key in exact if key in row} | {"measured": "val/rsum" in row}


def _check_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    steps = [row["step"] for row in rows if "train/loss" in row or "train/certificate" in row]
    if steps != list(range(1, STEPS + 1)):
        twice, missing = {step for step in steps if steps.count(step) > 1}, set(range(1, STEPS + 1)) - set(steps)
        raise DrillError(f"rows of metrics: steps twice {sorted(twice)}, missing {sorted(missing)}")
    if len(rows) != len(expected):
        raise DrillError(f"{len(rows)} rows of metrics where an undisturbed run has {len(expected)}")
    for row, other in zip(rows, expected, strict=True):
        keys = [key for key in row.keys() | other.keys() if not _TIMES.match(key) and row.get(key) != other.get(key)]
        if keys:
            raise DrillError(f"the row of step {row['step']} differs in {', '.join(sorted(keys))}")


def _check_summary(run: RunDirectory, undisturbed: RunDirectory) -> None:
    ours, theirs = run.read_summary(), undisturbed.read_summary()
    assert theirs is not None
    if ours is None or ours["certificate"] != theirs["certificate"] or ours["step"] != STEPS:
        raise DrillError(f"other certificate or end: {ours}")


def _check_checkpoints(folder: Path) -> None:
    """Raise unless only what a link names is there, and it says of the last step."""
    named = {str(path.readlink()) for path in folder.iterdir() if path.is_symlink()}
    there = {path.name for path in folder.iterdir() if not path.is_symlink()}
    if named != there:
        raise DrillError(f"checkpoints {sorted(there)} where links name {sorted(named)}")
    if (step := json.loads((folder / "last/position.json").read_text())["step"]) != STEPS:
        raise DrillError(f"the last checkpoint is of step {step}")
