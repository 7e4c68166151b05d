"""How far a long measurement is: a bar in a terminal, else a line now and then for a log. Both on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0  # seconds between two lines of a log


@contextmanager
def shown_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (done, total); what is done in less than ten seconds leaves no trace in a log."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str) -> None:
        self.what = what
        self.started = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            share = f"{100 * done / max(total, 1):.0f} %"
            print(f"{self.what}: {done:,} of {total:,} ({share}) after {now - self.started:.0f} s", file=sys.stderr)
