"""Show a search while it goes on: its events as they happen, what keeps a trial waiting, and else what is running."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed.heartbeat import read
from distributed.progress import Waiting
from distributed.run_directory import RunDirectory
from retrieval_eval.run_files import read_rows
from tune.config import Search
from tune.results import evaluations

SOONEST, LATEST = 10.0, 60.0
"""Seconds without a line after which there is one that says what is running: at first, and at most."""


class SearchFollower:
    """Follows the search's `events.jsonl` and those of its running trials; plain lines, so that logs keep them."""

    def __init__(self, search: Search, trials: int, say: Callable[[str], None]) -> None:
        self._search = search
        self._trials = trials
        self._say = say
        self._running: dict[str, TrialFollower] = {}
        self._ended = 0
        self._pause = SOONEST
        self._next = time.monotonic() + self._pause

    @contextmanager
    def following(self) -> Iterator[None]:
        """Print what is new from a thread until the block ends."""
        done = threading.Event()
        seen = len(read_rows(self._search.events))
        thread = threading.Thread(target=self._follow, args=(seen, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _follow(self, seen: int, done: threading.Event) -> None:
        last = False
        while not last:
            last = done.wait(0.5)
            events = read_rows(self._search.events)
            for event in events[seen:]:
                self._tell(event["text"])
                if event["event"] == "started":
                    self._running[event["trial"]] = TrialFollower(self._search, event["trial"])
                elif event["event"] in ("ended", "failed"):
                    self._running.pop(event["trial"], None)
                    self._ended += 1
            seen = len(events)
            for trial_id, trial in self._running.items():
                for text in trial.news():
                    self._tell(f"{trial_id}  {text}")
            if time.monotonic() >= self._next and not last:
                self._say(self._standing())
                self._pause = min(2 * self._pause, LATEST)
                self._next = time.monotonic() + self._pause

    def _tell(self, text: str) -> None:
        self._say(text)
        self._pause = SOONEST
        self._next = time.monotonic() + self._pause

    def _standing(self) -> str:
        shown = [f"{trial_id} {trial.standing()}" for trial_id, trial in list(self._running.items())[:4]]
        more = f" and {len(self._running) - 4} more" if len(self._running) > 4 else ""
        running = f"running: {' · '.join(shown)}{more}" if shown else "starting the next trial"
        return f"{running}; {self._ended} of {self._trials} ended{self._best()}"

    def _best(self) -> str:
        """Name the best value so far and whose it is."""
        metric, found = self._search.metric, []
        for folder in (self._search.folder / "trials").glob(f"{self._search.name}-*"):
            values = [row[metric] for row in evaluations(RunDirectory(folder)) if metric in row]
            found += [(value, folder.name.removeprefix(f"{self._search.name}-")) for value in values]
        if not found:
            return ""
        value, trial_id = (max if self._search.mode == "max" else min)(found)
        return f"; best {metric} {value:.4g} ({trial_id})"


class TrialFollower:
    """One running trial, seen through its run directory."""

    def __init__(self, search: Search, trial_id: str) -> None:
        self._run = RunDirectory(search.run_dir(trial_id))
        self._seen = len(read_rows(self._run.events))
        self._waiting: Waiting | None = None

    def news(self) -> Iterator[str]:
        """Yield what happened to the trial's workers that a person should know, and what they wait for."""
        events = read_rows(self._run.events)
        for event in events[self._seen :]:
            self._waiting = Waiting(event) if event["event"] == "asked" else None
            if event["event"] not in ("asked", "placed", "failed"):
                yield event["text"]
        self._seen = len(events)
        if self._waiting is not None and (text := self._waiting.look()):
            yield text

    def standing(self) -> str:
        """Say how far the trial is."""
        steps = [row for row in self._run.history() if "train/loss" in row]
        if steps:
            return f"step {steps[-1]['step']:,}, epoch {steps[-1]['epoch']:.2f}, loss {steps[-1]['train/loss']:.4f}"
        beat = read(self._run.heartbeat(0))
        return f"step {beat['step']:,}" if beat else "its workers start"
