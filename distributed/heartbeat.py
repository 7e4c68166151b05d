"""Signs of life: every rank says that it lives and where its training stands, for whoever watches the run.

A rank that stays where it is for long also says what its training thread does: its Python stack.
"""

import faulthandler
import json
import os
import re
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from allpairs.files import write_json

READING = "reading samples"
"""This rank works alone: nobody waits inside its step yet."""
STEPPING = "computing"
"""Forward, loss, backward: in here a rank may wait for the others."""


_HEADER = 17
"""Bytes that say which thread counts, ahead of what the watchdog leaves."""


class Heartbeat:
    """Writes `{"beat", "step", "doing"}` to a file, from a thread, as long as the block lasts.

    The count shows that the process runs; step and `doing` show whether training goes on. The thread is its own: one
    that waits in a collective or computes still beats, one that was stopped or whose node is gone does not. After
    `patience` seconds in one place a beat has the `stack` of the thread that made this object. Code that never lets
    go of Python's lock silences the beat; a watchdog outside Python then leaves the stacks of all threads beside it.
    """

    def __init__(self, path: Path, interval: float, patience: float = float("inf")) -> None:
        self._path = path
        self._interval = interval
        self._patience = patience
        self._trains = threading.get_ident()
        self._beat, self._step, self._doing = 0, 0, "setting up"
        self._since = time.monotonic()
        self._wake, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, name="heartbeat", daemon=True)

    def at(self, step: int, doing: str) -> None:
        """Note where training stands; written with the next beat, at once when it is the first step or the last."""
        sudden = {self._doing, doing} != {READING, STEPPING} and doing != self._doing
        if (step, doing) != (self._step, self._doing):
            self._since = time.monotonic()
        self._step, self._doing = step, doing
        if sudden:
            self._wake.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._wake.set()
        self._thread.join(self._interval)

    def _write(self) -> None:
        watchdog = self._open_watchdog()
        while not self._done.is_set():
            if watchdog is not None:
                os.ftruncate(watchdog, _HEADER)
                faulthandler.dump_traceback_later(self._patience, file=watchdog)
            self._beat += 1
            beat: dict[str, Any] = {"beat": self._beat, "step": self._step, "doing": self._doing}
            if time.monotonic() - self._since >= self._patience:
                beat["stack"] = _stack_of(self._trains)
            with suppress(OSError):  # a full disk is told by what must be written, not by this
                write_json(self._path, beat, indent=None)
            self._wake.wait(self._interval)
            self._wake.clear()
        if watchdog is not None:
            faulthandler.cancel_dump_traceback_later()
            os.close(watchdog)

    def _open_watchdog(self) -> int | None:
        """Open the file that the watchdog writes to; it begins with the thread whose stack counts."""
        if self._patience == float("inf"):
            return None
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path.with_suffix(".stack"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            os.write(file, f"{self._trains:016x}\n".encode())
            return file
        return None


def read(path: Path) -> dict[str, Any] | None:
    """Return the last beat in `path`; None where there is none yet."""
    try:
        beat: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return beat


def read_stack(path: Path) -> list[str]:
    """Return the training thread's newest stack, outermost call first, beside or in the beat of `path`; as a rule none.

    Each line is ``FILE:LINE FUNCTION``.
    """
    beat = read(path)
    if beat is not None and "stack" in beat:
        stack: list[str] = beat["stack"]
        return stack
    try:
        thread, _, dumped = path.with_suffix(".stack").read_text(encoding="utf-8", errors="replace").partition("\n")
    except OSError:
        return []
    *_, newest = dumped.rpartition(f"0x{thread} (most recent call first):\n")
    own = newest.partition("\n\n")[0] if thread in dumped else ""
    return [f"{file}:{line} {name}" for file, line, name in re.findall(r'File "(.+)", line (\d+) in (.+)', own)][::-1]


def _stack_of(thread: int) -> list[str]:
    frame = sys._current_frames().get(thread)
    return [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_stack(frame)] if frame else []
