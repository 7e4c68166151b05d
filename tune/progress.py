"""One line per event of a search: a trial starts, is evaluated, ends."""

import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tune.space import decode, describe

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class Lines(Callback):
    """Prints lines like ``7f2e1_00003  margin=0.2 scale=20  epoch 4  val/rsum 213.4``; plain lines, so logs keep them.

    Ray pickles it with the search, so it holds nothing but plain values.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._started: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: Any) -> None:
        """Say that a trial starts or, after a restart, goes on."""
        self._started[trial.trial_id] = time.time()
        _say(trial, "started")

    def on_trial_result(
        self, iteration: int, trials: list["Trial"], trial: "Trial", result: dict[str, Any], **info: Any
    ) -> None:
        """Say what an evaluation found."""
        if self._metric in result:
            _say(trial, f"epoch {result['epoch']:g}  {self._metric} {result[self._metric]:.4g}")

    def on_trial_complete(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: Any) -> None:
        """Say that a trial ended, by itself or by the scheduler."""
        _say(trial, f"ended after {self._seconds(trial)}")

    def on_trial_error(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: Any) -> None:
        """Say that a trial failed; the reason is in the table at the end."""
        _say(trial, f"failed after {self._seconds(trial)}")

    def _seconds(self, trial: "Trial") -> str:
        return f"{time.time() - self._started.get(trial.trial_id, time.time()):.0f} s"


def _say(trial: "Trial", text: str) -> None:
    print(f"{trial.trial_id}  {describe(decode(trial.config))}  {text}", flush=True)
