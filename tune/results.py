"""What the trials of a search came to, read from their run directories; as CSV."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from allpairs.files import replacing
from distributed.run_directory import RunDirectory
from tune.config import SEED, Search
from tune.space import describe, short_value

M = TypeVar("M", bound="Measured")

Status = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Trial:
    """One trial and the evaluations of its run, in order."""

    id: str
    values: Mapping[str, Any]
    status: Status
    run_dir: Path
    history: Sequence[Mapping[str, float]]
    """Rows of metrics.jsonl that evaluations during training wrote: `epoch`, `val/rsum`, `val/loss`, ..."""
    reason: str = ""
    """Why it failed."""
    summary: Mapping[str, float] = field(default_factory=dict)
    """The final metrics of a run that reached its end."""
    reference: bool = False
    """Whether it is one of `references`, whose values are of keys of their own."""

    def best(self, metric: str, mode: str) -> tuple[float, float] | None:
        """Return the best value of `metric` and its epoch, None where it was never measured."""
        measured = [(row[metric], row["epoch"]) for row in self.history if metric in row]
        if not measured:
            return None
        return (max if mode == "max" else min)(measured, key=lambda pair: pair[0])


def evaluations(run: RunDirectory) -> list[dict[str, float]]:
    """Return the figures of the rows of `run` that evaluations during training wrote.

    The final one measures the best epoch again.
    """
    return [
        {name: value for name, value in row.items() if isinstance(value, int | float)}  # `val/engine` is a word
        for row in run.history()
        if "val/best_rsum" in row
    ]


class Measured(Protocol):
    """What may be ranked: a trial, or a setting over its seeds."""

    def best(self, metric: str, mode: str) -> tuple[float, float] | None:
        """Return the best value of `metric` and its epoch, None where it was never measured."""


def ranked(measured: Sequence[M], search: Search) -> list[M]:
    """Sort by the best metric, those without one last."""
    sign = -1 if search.mode == "max" else 1
    found = [(one, best[0]) for one in measured if (best := one.best(search.metric, search.mode)) is not None]
    found.sort(key=lambda pair: sign * pair[1])
    return [one for one, _ in found] + [one for one in measured if one.best(search.metric, search.mode) is None]


def write_csv(path: Path, trials: Sequence[Trial], search: Search) -> None:
    """Write one row per trial, best first: its values, the best and the last metric with their epochs, its run."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        best_and_last = [f"best {search.metric}", "best epoch", f"last {search.metric}", "epochs"]
        keys = [*search.space, *([SEED] if search.seeds > 1 else [])]
        references = ["reference"] if search.references else []
        writer.writerow(["trial", "status", *keys, *references, *best_and_last, "reason", "run"])
        for trial in ranked(trials, search):
            best = trial.best(search.metric, search.mode) or ("", "")
            last = trial.history[-1] if trial.history else {}
            measured = [*best, last.get(search.metric, ""), last.get("epoch", "")]
            values = cells(trial.values, keys, search, reference=trial.reference)
            writer.writerow([trial.id, trial.status, *values, *measured, trial.reason, trial.run_dir])


def cells(values: Mapping[str, Any], keys: Sequence[str], search: Search, *, reference: bool) -> list[Any]:
    """Return what a row says of `values`: one cell a key, empty where it has none; then the reference's name."""
    own = {key: value for key, value in values.items() if key == SEED} if reference else values
    row = [short_value(value) if isinstance(value, Mapping | list) else value for value in map(own.get, keys)]
    return row + ([reference_name(values) if reference else None] if search.references else [])


def reference_name(values: Mapping[str, Any]) -> str:
    """Name a reference by what it sets, whatever its seed."""
    return describe({key: value for key, value in values.items() if key != SEED})
