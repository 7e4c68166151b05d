"""The one place a measurement is handed to, whatever listens: a file, Weights & Biases, or nobody (ranks but 0)."""

import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

from allpairs.embeddings import EmbeddingSet
from allpairs.files import write_text
from distributed.config import Config
from distributed.run_directory import RunDirectory
from distributed.tracking.examples import Example


class Tracker(Protocol):
    """What the training loop tells, and whoever records it does."""

    def log(self, row: dict[str, Any]) -> None:
        """Record one row: `step`, `epoch`, `samples_seen` and what was measured then."""

    def log_examples(self, embeddings: EmbeddingSet, examples: Sequence[Example]) -> None:
        """Record retrievals to look at."""

    def close(self, summary: dict[str, float] | None) -> None:
        """Flush everything; without a `summary` the run did not finish."""


def open_tracker(config: Config, run: RunDirectory, *, rank: int, resume_step: int, facts: dict[str, Any]) -> Tracker:
    """Return what records the run on this rank; `facts` are said once, beside the configuration."""
    if rank != 0:
        return Trackers()
    metrics = MetricsFile(run, resume_step)
    if config.tracking.wandb == "disabled":
        return Trackers(metrics)
    from distributed.tracking.wandb_run import WandbRun

    return Trackers(metrics, WandbRun(config, run, facts))


class Trackers:
    """Tells each of `trackers` in turn."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, row: dict[str, Any]) -> None:
        """Record one row."""
        for tracker in self._trackers:
            tracker.log(row)

    def log_examples(self, embeddings: EmbeddingSet, examples: Sequence[Example]) -> None:
        """Record retrievals to look at."""
        for tracker in self._trackers:
            tracker.log_examples(embeddings, examples)

    def close(self, summary: dict[str, float] | None) -> None:
        """Flush everything."""
        for tracker in self._trackers:
            tracker.close(summary)


class MetricsFile:
    """Appends rows to metrics.jsonl."""

    def __init__(self, run: RunDirectory, resume_step: int) -> None:
        # Steps after the checkpoint are done again, and so is the last measurement, which no checkpoint follows: their
        # rows go, or every curve would have two values there.
        # A change of the number of workers is measured by those that go on after its step.
        again = {"train/loss", "val/best_rsum"}
        kept = [
            row
            for row in run.history()
            if (row["step"] <= resume_step and again & row.keys())
            or (row["step"] < resume_step and "train/workers_before" in row)
        ]
        write_text(run.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = run.metrics.open("a", encoding="utf-8")

    def log(self, row: dict[str, Any]) -> None:
        """Append `row`, so that whoever follows the file sees it now."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def log_examples(self, embeddings: EmbeddingSet, examples: Sequence[Example]) -> None:
        """Do nothing: the report shows them."""

    def close(self, summary: dict[str, float] | None) -> None:
        """Bring the file to the disk; the summary has a file of its own."""
        os.fsync(self._file.fileno())
        self._file.close()
