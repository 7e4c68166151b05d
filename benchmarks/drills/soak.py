"""Memory and open files of workers over as many steps as an hour has: what grows slowly is seen only then."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.drills.disturbed import DisturbedRun, DrillError

HOUR = 13_000
"""Steps of the demo in an hour: 285 in 79 s with two workers (benchmarks/RESULTS.md)."""
_EPOCH = 20
_PACE = ("train.log_every=10", "eval.every=25", "train.checkpoint_every_steps=50")
_WARM = 0.25
"""Part of the run whose samples are left out: caches and allocators fill."""


def soak(config: Path, ray: tuple[str, int], steps: int) -> Table:
    """Train for `steps` with checkpoints, evaluations and rows of metrics as they come; measure once a second.

    Samples go to `soak.json` beside the configuration: step, and per rank bytes resident and file descriptors.
    """
    overrides = (f"train.epochs={steps // _EPOCH}", *_PACE)
    run = DisturbedRun(config, "memory", *overrides, ray=ray)
    shutil.rmtree(run.directory.root, ignore_errors=True)
    run.start()
    run.train_until(_EPOCH)
    workers = sorted(run.workers().items())
    samples: list[list[int]] = []
    while (step := run.step()) < steps - _EPOCH:
        if any(not process.is_running() for _, process in workers):
            raise DrillError(f"a worker ended after step {step}: {run.said()[-600:]}")
        row = [step]
        for _, process in workers:
            row += [process.memory_info().rss, process.num_fds()]
        samples.append(row)
        time.sleep(1)
    (config.parent / "soak.json").write_text(json.dumps(samples), encoding="utf-8")
    if code := run.ended():
        raise DrillError(f"exit code {code}: {run.said()[-600:]}")
    shutil.rmtree(run.directory.root)
    return _table(samples, len(workers))


def _table(samples: Sequence[Sequence[int]], ranks: int) -> Table:
    values = np.array(samples, dtype=np.float64)
    warm = values[values[:, 0] >= values[-1, 0] * _WARM]
    title = f"steps {warm[0, 0]:,.0f} to {warm[-1, 0]:,.0f}"
    table = Table(
        "rank", "MiB at the start", "max", "MiB per 1,000 steps", "descriptors", "max", "per 1,000", title=title
    )
    for rank in range(ranks):
        row = [str(rank)]
        for column, unit in ((1 + 2 * rank, 2**20), (2 + 2 * rank, 1)):
            of_steps = warm[:, column] / unit
            slope = 1000 * np.polyfit(warm[:, 0], of_steps, 1)[0]
            row += [f"{of_steps[0]:.0f}", f"{of_steps.max():.0f}", f"{slope:+.3f}"]
        table.add_row(*row)
    return table
