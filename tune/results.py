"""What the trials of a search came to, read from their run directories; as a table and as CSV."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allpairs.files import replacing
from distributed.run_directory import RunDirectory
from tune.config import Search
from tune.space import short_key, short_value

if TYPE_CHECKING:
    from rich.table import Table

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

    def best(self, metric: str, mode: str) -> tuple[float, float] | None:
        """Return the best value of `metric` and its epoch, None where it was never measured."""
        measured = [(row[metric], row["epoch"]) for row in self.history if metric in row]
        if not measured:
            return None
        return (max if mode == "max" else min)(measured, key=lambda pair: pair[0])


def evaluations(run: RunDirectory) -> list[dict[str, float]]:
    """Return the rows of `run` that evaluations during training wrote (the final one measures the best epoch again)."""
    return [row for row in run.history() if "val/best_rsum" in row]


def ranked(trials: Sequence[Trial], search: Search) -> list[Trial]:
    """Sort `trials` by their best metric, those without one last."""
    sign = -1 if search.mode == "max" else 1
    measured = [(trial, best) for trial in trials if (best := trial.best(search.metric, search.mode)) is not None]
    measured.sort(key=lambda pair: sign * pair[1][0])
    return [trial for trial, _ in measured] + [
        trial for trial in trials if trial.best(search.metric, search.mode) is None
    ]


def table(trials: Sequence[Trial], search: Search) -> "Table":
    """Return a rich table of `trials`, best first."""
    from rich.markup import escape
    from rich.table import Table

    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("trial", no_wrap=True)
    for key in search.space:
        result.add_column(short_key(key), justify="right")
    result.add_column(search.metric, justify="right")
    result.add_column("epoch", justify="right")
    result.add_column("")
    for rank, trial in enumerate(ranked(trials, search)):
        best = trial.best(search.metric, search.mode)
        result.add_row(
            trial.id,
            *(escape(short_value(trial.values[key])) for key in search.space),
            "–" if best is None else f"{best[0]:.4g}" if abs(best[0]) < 10 else f"{best[0]:.1f}",
            "–" if best is None else f"{best[1]:g}",
            escape(f"{trial.status}: {trial.reason}" if trial.reason else trial.status),
            style="bold green" if rank == 0 and best is not None else None,
        )
    return result


def write_csv(path: Path, trials: Sequence[Trial], search: Search) -> None:
    """Write one row per trial, best first: its values, the best and the last metric with their epochs, its run."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        best_and_last = [f"best {search.metric}", "best epoch", f"last {search.metric}", "epochs"]
        writer.writerow(["trial", "status", *search.space, *best_and_last, "reason", "run"])
        for trial in ranked(trials, search):
            best = trial.best(search.metric, search.mode) or ("", "")
            last = trial.history[-1] if trial.history else {}
            measured = [*best, last.get(search.metric, ""), last.get("epoch", "")]
            values = [
                short_value(value) if isinstance(value, Mapping) else value
                for value in (trial.values[key] for key in search.space)
            ]
            writer.writerow([trial.id, trial.status, *values, *measured, trial.reason, trial.run_dir])
