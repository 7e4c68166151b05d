"""A torch profiler trace of a few training steps (`tracking.profile`)."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from distributed.clock import Clock
from distributed.run_directory import RunDirectory

FIRST, WARM_UP, TRACED = 5, 2, 3
"""Steps of a session that are let pass (the first are slow), that wake the profiler, and that are traced."""


class StepProfiler:
    """Traces some of this rank's steps once, with the parts of `clock` as named rows; `say` hears where the file is."""

    def __init__(self, run: RunDirectory, rank: int, clock: Clock, device: torch.device, say: Callable[[str], None]):
        self._path = run.profile(rank)
        self._clock = clock
        self._say = say
        self._last = 0
        self._done = False
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own lines would come between ours
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self._profile = profile(
            activities=activities,
            schedule=schedule(skip_first=FIRST, wait=0, warmup=WARM_UP, active=TRACED, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        clock.labels = True
        self._profile.start()

    def stepped(self, step: int) -> None:
        """Note that a step, of this number in the run, is done."""
        if not self._done:
            self._last = step
            self._profile.step()

    def close(self) -> None:
        """End it; say so where there were too few steps."""
        if not self._done:
            self._end()
            self._profile.stop()
            self._say(f"nothing was profiled: that takes {FIRST + WARM_UP + TRACED + 1} steps of one session")

    def _write(self, traced: Any) -> None:
        if self._done:
            return
        self._end()
        self._path.parent.mkdir(exist_ok=True)
        traced.export_chrome_trace(str(self._path))
        self._say(
            f"profile of steps {self._last - TRACED + 1:,} to {self._last:,}: {self._path}; open it in "
            "https://ui.perfetto.dev or chrome://tracing: the rows 'step: …' are the parts of train/ms_…"
        )

    def _end(self) -> None:
        self._done, self._clock.labels = True, False
