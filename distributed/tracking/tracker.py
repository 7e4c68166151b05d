"""The one place a measurement is handed to; rank 0 only."""

import json
import os
from typing import Any

from allpairs.files import write_text
from distributed.config import Config
from distributed.run_directory import RunDirectory
from distributed.tracking.wandb_run import WandbRun


class Tracker:
    """Appends rows to metrics.jsonl and forwards them to W&B."""

    def __init__(self, config: Config, run: RunDirectory, resume_step: int, facts: dict[str, Any]) -> None:
        # Steps after the checkpoint are done again: their rows go, or every curve would have two values there.
        kept = [row for row in run.history() if row["step"] <= resume_step] if resume_step else []
        write_text(run.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = run.metrics.open("a", encoding="utf-8")
        self.wandb = WandbRun(config, run, facts) if config.tracking.wandb != "disabled" else None

    def log(self, row: dict[str, Any]) -> None:
        """Record one row: `step`, `epoch`, `samples_seen` and what was measured then."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self.wandb is not None:
            self.wandb.log(row)

    def close(self, summary: dict[str, float] | None) -> None:
        """Flush everything; without a `summary` the run did not finish."""
        os.fsync(self._file.fileno())
        self._file.close()
        if self.wandb is not None:
            if summary is None:
                self.wandb.abandon()
            else:
                self.wandb.finish(summary)
