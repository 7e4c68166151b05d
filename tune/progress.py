"""What happens in a search, one row per event in its `events.jsonl`, each with the line a person reads as `text`.

`tune.following` prints them while the search goes on.
"""

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from distributed.progress import duration
from distributed.run_directory import RunDirectory
from tune.config import Search
from tune.points import Point
from tune.space import describe

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class Recorder(Callback):
    """Notes that a trial starts, is evaluated, ends; Ray pickles it with the search, so it holds plain values."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._started: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: Any) -> None:
        """Note that a trial starts or, after a restart, goes on."""
        self._started[trial.trial_id] = time.time()
        note(self._search, "started", trial, "started")

    def on_trial_result(
        self, iteration: int, trials: list["Trial"], trial: "Trial", result: dict[str, Any], **info: Any
    ) -> None:
        """Note what an evaluation found."""
        metric = self._search.metric
        if metric in result:
            note(self._search, "measured", trial, f"epoch {result['epoch']:g}  {metric} {result[metric]:.4g}")

    def on_trial_complete(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: Any) -> None:
        """Note that a trial ended, by itself or by the scheduler."""
        finished = RunDirectory(self._search.run_dir(trial.trial_id)).summary.exists()
        how = "finished" if finished else "stopped early"
        note(self._search, "ended", trial, f"{how} after {self._seconds(trial)}")

    def on_trial_error(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: Any) -> None:
        """Note that a trial failed; the reason is in the table at the end."""
        note(self._search, "failed", trial, f"failed after {self._seconds(trial)}")

    def _seconds(self, trial: "Trial") -> str:
        return duration(time.time() - self._started.get(trial.trial_id, time.time()))


def note(search: Search, event: str, trial: "Trial", text: str) -> None:
    """Append one event."""
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "event": event,
        "trial": trial.trial_id,
        "text": f"{trial.trial_id}  {describe(Point.decode(trial.config).values)}  {text}",
    }
    with search.events.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
