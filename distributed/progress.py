"""Show a run while it goes on: the driver follows the run's metrics.jsonl and prints one line per row."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from distributed.run_directory import RunDirectory


class Follower:
    """Prints rows of metrics as they are written; whoever runs the driver sees them, on a laptop as in a job's log."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def following(self, run: RunDirectory) -> Iterator[None]:
        """Print new rows of `run` from a thread until the block ends."""
        done = threading.Event()
        seen = len(run.history())
        thread = threading.Thread(target=self._follow, args=(run, seen, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _follow(self, run: RunDirectory, seen: int, done: threading.Event) -> None:
        last = False
        while not last:
            last = done.wait(0.5)
            rows = run.history()
            if len(rows) < seen:  # a restart cut the steps it will do again
                self._console.print(f"  continuing after step {rows[-1]['step'] if rows else 0}", style="yellow")
                seen = len(rows)
            for row in rows[seen:]:
                self._console.print(line(row), highlight=False, soft_wrap=True)
            seen = len(rows)


def line(row: dict[str, Any]) -> str:
    """Format one row of metrics.jsonl for reading."""
    if "val/rsum" in row:
        best = "  [green]best[/]" if row["val/rsum"] == row["val/best_rsum"] else ""
        recalls = "  ".join(
            f"{name} {row[f'val/{way}/r1']:.1f}/{row[f'val/{way}/r5']:.1f}/{row[f'val/{way}/r10']:.1f}"
            for name, way in (("i→t", "i2t"), ("t→i", "t2i"))
        )
        return f"[bold]epoch {row['epoch']:g}[/]  val RSUM [bold]{row['val/rsum']:.1f}[/]  R@1/5/10 {recalls}{best}"
    if "train/loss" in row:
        return (
            f"step {row['step']:>6,}  epoch {row['epoch']:5.2f}  loss {row['train/loss']:.4f}  "
            f"sim + {row['train/positive_similarity']:.2f} − {row['train/hardest_negative_similarity']:.2f}  "
            f"{row['train/samples_per_second']:,.0f} samples/s  ETA {duration(row['train/eta_seconds'])}"
        )
    return "  ".join(f"{name} {value:.1f}" for name, value in row.items() if name.endswith("rsum"))


def duration(seconds: float) -> str:
    """Format a time span: `48 s`, `12:05`, `3:20:00`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
