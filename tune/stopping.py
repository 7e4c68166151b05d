"""Stopping a search on request: its running trials save a checkpoint, Tune notes them as running, `--resume` goes on.

A trial that has saved parks: its function does not return, or Tune would take the trial for ended and start the next.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from distributed.run_directory import RunDirectory
from distributed.stopping import Flag, handled, stop_flag, workers_are_up
from retrieval_eval.run_files import read_rows
from tune.config import Search

LONGEST = 120.0
"""Seconds that trials get to save; a trial that stands still must not keep the search from ending."""


def park(search: Search, trial_id: str) -> None:
    """Wait for Tune's end, having said so."""
    parked_flag(search, trial_id).set()
    threading.Event().wait()


def parked_flag(search: Search, trial_id: str) -> Flag:
    """Return what says that a trial has saved and waits."""
    return Flag(search.run_dir(trial_id), "parked")


class SearchSignals:
    """SIGTERM (`ray job stop`, SLURM, Kubernetes) and Ctrl-C while a search goes on, in its driver's main thread."""

    def __init__(self, search: Search, say: Callable[[str], None]) -> None:
        self._search = search
        self._say = say
        self._tuning = False
        self._earlier = 0
        self.received: signal.Signals | None = None

    def call(self, tune: Callable[[], object]) -> None:
        """Run `tune`, Ray Tune's loop; on a signal it ends once the running trials have saved.

        Raises:
            KeyboardInterrupt: a second signal.
        """
        stop_flag(self._search.folder).clear()
        self._earlier = len(read_rows(self._search.events))
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours; SIGUSR1 stays Tune's, and ends its loop
        with handled(self._stop):
            self._tuning = True
            tune()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, signal.Signals(number)
        if again is not None or not self._tuning:
            raise KeyboardInterrupt
        self._say(f"{self.received.name}: running trials finish their step and save a checkpoint")
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        stop_flag(self._search.folder).set()  # for trials that would start now
        deadline = time.monotonic() + LONGEST
        while (training := self._training()) and time.monotonic() < deadline:
            for trial_id in training:
                stop_flag(self._search.run_dir(trial_id)).set()
            time.sleep(0.3)
        while not callable(signal.getsignal(signal.SIGUSR1)):  # Tune is about to begin
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)

    def _training(self) -> list[str]:
        """Return the trials with something to save: their workers are up, and they have not parked."""
        return [
            trial_id
            for trial_id in running_trials(self._search, self._earlier)
            if workers_are_up(read_rows(RunDirectory(self._search.run_dir(trial_id)).events))
            and not parked_flag(self._search, trial_id).is_set()
        ]


def running_trials(search: Search, since: int) -> list[str]:
    """Return the ids of the trials that started and did not end, by the search's events from row `since` on."""
    running: dict[str, None] = {}
    for row in read_rows(search.events)[since:]:
        if row["event"] == "started":
            running[row["trial"]] = None
        elif row["event"] in ("ended", "failed"):
            running.pop(row["trial"], None)
    return list(running)
