"""One run of the training command, watched while it trains, and every process it has started."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.drills.setting import ROOT, environment
from distributed.run_directory import RunDirectory
from retrieval_eval.run_files import read_rows

PATIENCE = 600.0
"""Seconds for whatever is waited for: longer than any of it takes on a busy machine."""

_OF_RAY = re.compile(r"ray::(?!IDLE|DashboardAgent|RuntimeEnvAgent|_AutoscalingCoordinatorActor)")
"""The title of a process that has something to do: an idle one waits for the next run, the others are Ray's own."""


class DrillError(AssertionError):
    """A run did not do what it must."""


class DisturbedRun:
    """A run in `folder` under `name`; several commands, one after the other, may train it.

    `ray` is the address and the process of a Ray to join; without one each command has its own.
    """

    def __init__(self, config: Path, name: str, *overrides: str, ray: tuple[str, int] | None = None) -> None:
        self.directory = RunDirectory(config.parent / name)
        self._config = config
        self._overrides = overrides
        self._ray = ray
        self._command: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}

    def start(self, *overrides: str) -> None:
        """Start the training command, from the last checkpoint where there is one."""
        words = ["--config", str(self._config), f"run.name={self.directory.root.name}", *self._overrides, *overrides]
        more = {} if self._ray is None else {"RAY_ADDRESS": self._ray[0]}
        self.output.parent.mkdir(exist_ok=True)
        with self.output.open("ab") as output:
            # A process group of its own, as a shell gives it.
            self._command = subprocess.Popen(
                [sys.executable, "-m", "distributed.train", *words, "--resume", "auto"],
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment(**more),
            )  # fmt: skip

    @property
    def output(self) -> Path:
        """What its commands print."""
        return self.directory.root.parent / "output" / f"{self.directory.root.name}.txt"

    @property
    def pid(self) -> int:
        """The process id of the command: Ray's driver."""
        assert self._command is not None
        return self._command.pid

    def step(self) -> int:
        """Return the last step that has its row of metrics; 0 before the first."""
        try:
            with self.directory.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().split(b"\n")[:-1]  # the last is empty, or not yet written to its end
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, ValueError):
            return 0

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return what happened of one kind so far."""
        return [row for row in read_rows(self.directory.events) if row["event"] == kind]

    def workers(self) -> dict[int, psutil.Process]:
        """Return the process of each rank that was placed last; of this run's commands or of the Ray they share."""
        placed = self.events("placed")[-1]["ranks"]
        ours = {process.pid: process for process in self._started()}
        self._family |= ours
        if missing := [place["pid"] for place in placed.values() if place["pid"] not in ours]:
            raise DrillError(f"processes {missing} are not of this run")
        return {int(rank): ours[place["pid"]] for rank, place in placed.items()}

    def _started(self) -> list[psutil.Process]:
        """Return the processes below the command and, where they share a Ray, below that."""
        found = []
        for root in (self.pid, *([self._ray[1]] if self._ray else [])):
            try:
                found += psutil.Process(root).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
        return found

    def wait(self, what: str, holds: Callable[[], bool], *, pause: float = 0.01) -> None:
        """Wait until `holds`, for as long as the command runs."""
        assert self._command is not None
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if self._command.poll() is not None:
                raise DrillError(f"ended with {self._command.returncode} before {what}: {self.said()[-600:]}")
            if time.monotonic() > deadline:
                raise DrillError(f"no {what} in {PATIENCE:.0f} s: {self.said()[-600:]}")
            time.sleep(pause)

    def train_until(self, step: int) -> None:
        """Wait until `step` is trained and its workers are there to be disturbed."""
        self.wait(f"step {step}", lambda: self.step() >= step)

    def ended(self) -> int:
        """Wait for the command's end and return its exit code; raise where any process of it outlives it."""
        assert self._command is not None
        deadline = time.monotonic() + PATIENCE
        while (code := self._command.poll()) is None:
            if time.monotonic() > deadline:
                raise DrillError(f"not ended in {PATIENCE:.0f} s: {self.said()[-600:]}")
            if self._ray is None:
                self.watch_family()
            time.sleep(0.2)
        self.nothing_is_left()
        return code

    def nothing_is_left(self, seconds: float = 90) -> None:
        """Wait until every process that the command started is gone; raise for those that stay.

        Of a Ray whose driver was killed two agents try for a minute to report that their node has ended.
        """
        deadline = time.monotonic() + seconds
        while left := [process for process in self._orphans() if process.is_running()]:
            if time.monotonic() > deadline:
                raise DrillError(f"left behind: {', '.join(map(_title, left))}")
            time.sleep(0.1)
        self._family.clear()

    def _orphans(self) -> list[psutil.Process]:
        if self._ray is None:
            return [process for process in self._family.values() if not _is_gone(process)]
        # Processes of a shared Ray stay, idle, for the next run: what must not is any that still works.
        return [process for process in self._started() if not _is_gone(process) and _OF_RAY.match(_title(process))]

    def watch_family(self) -> None:
        """Note the processes there are now, so that none of them can be lost sight of when its parent dies."""
        self._family |= {process.pid: process for process in self._started()}

    def said(self) -> str:
        """Return all that its commands have printed."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""

    def kill_all(self) -> None:
        """End what a failed drill has left, each by its own id."""
        if self._command is None:
            return
        self.watch_family()
        if self._command.poll() is None:
            self._command.kill()
            self._command.wait()
        for process in self._orphans():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:100] or process.name()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
