"""Show a run while it goes on: the driver follows the run's metrics.jsonl and prints one line per row."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from allpairs.terminal import visible
from distributed.heartbeat import READING, STEPPING, read
from distributed.run_directory import RunDirectory
from retrieval_eval.page.times import PREFIX, shares
from retrieval_eval.run_files import read_rows


class Follower:
    """Prints rows of metrics and what happens to the workers, as they are written: on a laptop as in a job's log."""

    def __init__(self, console: Console, *, step_times: bool = False) -> None:
        self._console = console
        self._step_times = step_times
        self._advised = False

    def say(self, text: str, style: str | None = None) -> None:
        """Print one line."""
        self._console.print(f"  {visible(text)}", style=style, highlight=False, markup=False, soft_wrap=True)

    def _show(self, row: dict[str, Any]) -> None:
        self._console.print(line(row), highlight=False, soft_wrap=True)
        if self._step_times and (times := step_times(row)):
            self.say(times)
        if "val/collapsing" in row:
            self.say(collapsing(row, advice=not self._advised), style="yellow")
            self._advised = True

    @contextmanager
    def following(self, run: RunDirectory) -> Iterator[None]:
        """Print what is new in `run` from a thread until the block ends."""
        done = threading.Event()
        seen = len(_measured(run)), len(read_rows(run.events))
        thread = threading.Thread(target=self._follow, args=(run, seen, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _follow(self, run: RunDirectory, seen: tuple[int, int], done: threading.Event) -> None:
        measured, happened = seen
        waiting: Waiting | None = None
        doing: str | None = None
        noted = ""
        last = False
        while not last:
            last = done.wait(0.5)
            events = read_rows(run.events)
            for event in events[happened:]:
                kind = event["event"]
                if kind not in _SAID_BY_OTHERS:
                    for text in (event["text"], *event.get("stacks", ())):
                        self.say(text, style="yellow" if kind in _UNUSUAL else None)
                if kind not in _BESIDE:
                    waiting = Waiting(event) if kind == "asked" else None
                    doing = None if kind == "placed" else ""
            happened = len(events)
            if waiting is not None and not last and (text := waiting.look()):
                self.say(text, style="yellow")
            rows = _measured(run)
            if doing is None and (beat := read(run.heartbeat(0))) and beat["doing"] in (READING, STEPPING):
                doing = beat["doing"]
                if len(rows) == measured:
                    self.say(f"first step ({beat['step']:,}) begins; lines follow every train.log_every steps")
            if len(rows) < measured:  # a restart cut the steps it will do again
                self.say(f"continuing after step {rows[-1]['step'] if rows else 0:,}", style="yellow")
                measured = len(rows)
            for row in rows[measured:]:
                self._show(row)
            measured = len(rows)
            if run.tracking_note.exists() and (note := run.tracking_note.read_text(encoding="utf-8")) != noted:
                self.say(note, style="yellow")
                noted = note


_UNUSUAL = ("note", "still", "restart", "making way", "resized")
_BESIDE = ("note", "still", "decided", "resized")
"""Events that leave open where the workers are."""
_SAID_BY_OTHERS = ("failed", "decided")
"""How the run ends is said by who started it; why there are so many workers, by those."""


def _measured(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the rows to print: a change of the number of workers is said as an event."""
    return [row for row in run.history() if "train/workers_before" not in row]


_STARTING = 9.5
"""Seconds that processes of workers may take without a word: they import torch."""


class Waiting:
    """Says what workers that were asked for wait for, room or their processes: soon, then ever more seldom."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._count: int = asked["workers"]
        self._each: dict[str, float] = asked["each"]
        self._asked = asked["text"].removeprefix("asking for ")
        self._pause = 5.0
        self._since = time.monotonic()
        self._next = self._since + self._pause

    def look(self) -> str | None:
        """Return what to say now, if anything."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next, self._pause = now + self._pause, min(2 * self._pause, 300.0)
        import ray
        from ray.util import placement_group_table

        groups = placement_group_table().values()
        if not any(group["state"] == "PENDING" and len(group["bundles"]) == self._count for group in groups):
            waited = now - self._since
            if waited < _STARTING:
                return None
            return f"waiting: {self._asked} have their place, but after {duration(waited)} their processes are not up"
        free = ray.available_resources()
        return f"waiting: {self._asked} asked, {', '.join(_free(name, free) for name in self._each)} free"


def _free(name: str, free: dict[str, float]) -> str:
    return f"{free.get(name, 0):g}" if name == "CPU" else f"{free.get(name, 0):g} {name}"


def line(row: dict[str, Any]) -> str:
    """Format one row of metrics.jsonl for reading."""
    if "val/best_rsum" in row:  # without data.test the last row measures val too, under the best checkpoint
        best = "  [green]best[/]" if row["val/rsum"] == row["val/best_rsum"] else ""
        recalls = "  ".join(
            f"{name} {row[f'val/{way}/r1']:.1f}/{row[f'val/{way}/r5']:.1f}/{row[f'val/{way}/r10']:.1f}"
            for name, way in (("i→t", "i2t"), ("t→i", "t2i"))
        )
        engine = row.get("val/engine", "exact")
        by = f"  by {engine}" if engine != "exact" else ""
        rsum = f"[bold]epoch {row['epoch']:.4g}[/]  val RSUM [bold]{row['val/rsum']:.1f}[/]"
        return f"{rsum}  R@1/5/10 {recalls}{by}{best}"
    if "train/loss" in row:
        return (
            f"step {row['step']:>6,}  epoch {row['epoch']:5.2f}  loss {row['train/loss']:.4f}  "
            f"sim + {row['train/positive_similarity']:.2f} − {row['train/hardest_negative_similarity']:.2f}  "
            f"{row['train/samples_per_second']:,.0f} samples/s  ETA {duration(row['train/eta_seconds'])}"
            f"{_waits(row)}{_clean(row)}"
        )
    return "  ".join(
        f"{name.removesuffix('/rsum')} RSUM {value:.1f}" for name, value in row.items() if name.endswith("/rsum")
    )


def step_times(row: dict[str, Any]) -> str:
    """Say where the time of a step went; nothing where the row doesn't tell."""
    parts = shares([row])
    whole = sum(value for name, value in row.items() if name.startswith(PREFIX))
    told = " · ".join(f"{part} {share:.0%}" for part, share in parts.items() if share >= 0.005)
    memory = f" · GPU {row['train/gpu_gb']:.1f} GB" if "train/gpu_gb" in row else ""
    return f"{whole:,.0f} ms a step: {told}{memory}" if parts else ""


def _waits(row: dict[str, Any]) -> str:
    """Say that steps wait for samples, where that takes a tenth of the time or more."""
    share = shares([row]).get("read", 0.0)
    return f"  waiting for data {share:.0%}" if share >= 0.1 else ""


def _clean(row: dict[str, Any]) -> str:
    """Say how `train.recipe: ncr` divided the pairs."""
    if "train/clean_pairs" not in row:
        return ""
    return f"  clean {row['train/clean_pairs']:,} pairs, mean label {row['train/mean_label']:.2f}"


def collapsing(row: dict[str, Any], *, advice: bool) -> str:
    """Say what a row marked as collapsing means and, with `advice`, what helps."""
    if not advice:
        return f"collapsing, as before: {_similarities(row, 'val')}"
    return (
        f"collapsing: all epoch the hardest negatives stayed above the positives (now {_similarities(row, 'val')}) and "
        "retrieval is no better than chance. What helps: begin softer (triplet_hn: train.triplet_warmup_epochs=1; or "
        "objective.name=unified), a lower optimizer.lr, a longer optimizer.warmup_epochs, a smaller scale"
    )


def _similarities(row: dict[str, Any], split: str) -> str:
    return f"{row[f'{split}/hardest_negative_similarity']:.3f} and {row[f'{split}/positive_similarity']:.3f}"


def duration(seconds: float) -> str:
    """Format a time span: `48 s`, `12:05`, `3:20:00`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
