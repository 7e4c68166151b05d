"""Stopping on request: a signal to the driver becomes a step after which all ranks save a checkpoint and end.

The request travels through Ray's own key-value store, which is seen at once on every node; a file on network storage
may stay unseen for a minute, while `ray job stop` waits for seconds.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from distributed.run_directory import RunDirectory
from retrieval_eval.run_files import read_rows

POLL = 0.3
"""Seconds between rank 0's looks."""


class StopSignals:
    """SIGTERM (`ray job stop`, SLURM, Kubernetes) and Ctrl-C while a run goes on, in its driver's main thread."""

    def __init__(self, run: RunDirectory, say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say
        self._earlier = 0
        self.received: signal.Signals | None = None

    def call(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns; on a signal the ranks are asked to stop, and `work` ends when they did.

        Raises:
            KeyboardInterrupt: a signal before any worker is up, when there is nothing to save, or a second signal.
        """
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # raised again where the caller waits
                failure.append(error)

        # In a thread, because Ray Train takes Ctrl-C for itself where it finds a main thread, and saves nothing.
        thread = threading.Thread(target=run, daemon=True)
        with handled(self._stop):
            stop_flag(self._run.root).clear()
            self._earlier = len(read_rows(self._run.events))
            thread.start()
            while thread.is_alive():
                thread.join(0.2)
        if failure:
            raise failure[0]
        return outcome[0]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, signal.Signals(number)
        if again is not None or not workers_are_up(read_rows(self._run.events)[self._earlier :]):
            raise KeyboardInterrupt
        self._say(f"{self.received.name}: all ranks finish their step and save a checkpoint")
        stop_flag(self._run.root).set()


class Request:
    """Whether this run was asked for what `flag` says; looks from a thread, so that asking costs a step nothing."""

    def __init__(self, flag: "Flag") -> None:
        self.flag = flag
        self._asked = threading.Event()
        self._done = threading.Event()

    def __call__(self) -> bool:
        """Whether it was."""
        return self._asked.is_set()

    def take_back(self) -> None:
        """Go on as if it had not been."""
        self.flag.clear()
        self._asked.clear()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Look for the request as long as the block lasts."""
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            yield
        finally:
            self._done.set()

    def _listen(self) -> None:
        while not self._done.wait(POLL):
            if self.flag.is_set():
                self._asked.set()


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block SIGTERM and Ctrl-C call `handler`; only in a main thread."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def workers_are_up(events: Sequence[dict[str, Any]]) -> bool:
    """Whether the workers of a run were placed and not lost since, by its events."""
    placement = [event["event"] for event in events if event["event"] in ("asked", "placed", "restart", "failed")]
    return bool(placement) and placement[-1] == "placed"


class Flag:
    """A word about a folder (a run's, a search's) that everybody in the same Ray sees at once."""

    def __init__(self, folder: Path, word: str) -> None:
        self._key = f"allpairs-{word}:{folder}".encode()

    def set(self) -> None:
        """Say it."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self._key, b"1", overwrite=True)

    def is_set(self) -> bool:
        """Whether it was said."""
        from ray.experimental.internal_kv import _internal_kv_exists

        return bool(_internal_kv_exists(self._key))

    def clear(self) -> None:
        """Take it back."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self._key)


def stop_flag(folder: Path) -> Flag:
    """Return what asks the run or the search of `folder` to stop."""
    return Flag(folder, "stop")
