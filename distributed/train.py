"""Train, evaluate and report one run: `python -m distributed.train --config configs/NAME.yaml [section.key=value ...]`.

The knobs are documented in `distributed/config/tree.py`. On a cluster the same command is submitted with
`ray job submit --working-dir . -- python -m distributed.train ...`.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from distributed.config import load
from distributed.launch import Result, RunFailed, cluster, fit
from distributed.progress import Follower, duration
from retrieval_eval.command import run

app = App(name="python -m distributed.train", help=__doc__, version_flags=[])


@app.default
def train(*overrides: str, config: Annotated[Path, Parameter(name="--config")], resume: bool = False) -> int:
    """Train, evaluate and report one run.

    Parameters
    ----------
    overrides
        `section.key=value`, applied over the file in order; values are YAML.
    config
        YAML file of the run, e.g. configs/emoji.yaml.
    resume
        Continue an unfinished run of the same name from its last checkpoint.
    """
    console = Console()
    settings = load(config, overrides)
    started = time.perf_counter()
    console.print(
        f"[bold]{settings.run.name}[/]  {settings.objective.name} · {settings.cluster.workers} worker(s) · "
        f"batch {settings.train.global_batch} · {settings.train.epochs} epochs · {settings.run_dir}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    try:
        with cluster(cpus=settings.cluster.workers * settings.cluster.cpus_per_worker):
            result = fit(settings, resume=resume, follower=Follower(console))
    except RunFailed as failure:
        print(f"stopped: {failure}", file=sys.stderr)
        return 1
    _summarise(console, result, time.perf_counter() - started)
    return 0


def _summarise(console: Console, result: Result, seconds: float) -> None:
    from retrieval_eval import metrics_table

    metrics = result.metrics
    if not result.finished:
        console.print(f"stopped after step {metrics.get('step', 0):,.0f} as asked; --resume continues it")
        return
    split = "test" if "test/rsum" in metrics else "val"
    console.print(metrics_table(metrics, split))
    console.print(
        f"best epoch {metrics['val/best_epoch']:.0f} (val RSUM {metrics['val/best_rsum']:.1f}) · "
        f"training {duration(metrics['train/seconds'])}, everything {duration(seconds)}\n"
        f"report       {result.run_dir / 'report.html'}\n"
        f"checkpoints  {result.run_dir / 'checkpoints'}\n"
        f"metrics      {result.run_dir / 'metrics.jsonl'}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


if __name__ == "__main__":
    run(app)
