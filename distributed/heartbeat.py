"""Signs of life: every rank says that it lives and where its training stands, for whoever watches the run."""

import json
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from allpairs.files import write_json

READING = "reading samples"
"""This rank works alone: nobody waits inside its step yet."""
STEPPING = "computing"
"""Forward, loss, backward: in here a rank may wait for the others."""


class Heartbeat:
    """Writes `{"beat", "step", "doing"}` to a file, from a thread, as long as the block lasts.

    The count shows that the process runs; step and `doing` show whether training goes on. The thread is its own: one
    that waits in a collective or computes still beats, one that was stopped or whose node is gone does not.
    """

    def __init__(self, path: Path, interval: float) -> None:
        self._path = path
        self._interval = interval
        self._beat, self._step, self._doing = 0, 0, "setting up"
        self._wake, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def at(self, step: int, doing: str) -> None:
        """Note where training stands; written with the next beat, at once when it is the first step or the last."""
        sudden = {self._doing, doing} != {READING, STEPPING} and doing != self._doing
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
        while not self._done.is_set():
            self._beat += 1
            with suppress(OSError):  # a full disk is told by what must be written, not by this
                write_json(self._path, {"beat": self._beat, "step": self._step, "doing": self._doing}, indent=None)
            self._wake.wait(self._interval)
            self._wake.clear()


def read(path: Path) -> dict[str, Any] | None:
    """Return the last beat in `path`; None where there is none yet."""
    try:
        beat: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return beat
