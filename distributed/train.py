"""Train, evaluate and report one run: `python -m distributed.train --config configs/NAME.yaml [section.key=value ...]`.

The knobs are documented in `distributed/config/tree.py`. On a cluster the same command is submitted with
`ray job submit --working-dir . -- python -m distributed.train ...`.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from allpairs.command import Resume, run
from allpairs.objectives import make
from allpairs.terminal import visible
from distributed.config import load
from distributed.launch import Result, RunFailed, set_up, train_on_ray
from distributed.progress import Follower
from distributed.stopping import StopSignals
from distributed.summary import summary_lines, summary_table
from distributed.tracking.server import settle
from retrieval_eval.ray_cluster import cluster, joins_cluster

app = App(name="python -m distributed.train", help=__doc__, version_flags=[])


@app.default
def train(
    *overrides: str,
    config: Annotated[Path, Parameter(name="--config")],
    resume: Resume = False,
    profile: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train, evaluate and report one run.

    SIGTERM or Ctrl-C: all ranks save a checkpoint at the step they are in and the command ends with 128 plus the
    signal's number; a second one ends it at once.

    Parameters
    ----------
    overrides
        `section.key=value`, applied over the file in order; values are YAML.
    config
        YAML file of the run, e.g. configs/emoji.yaml.
    resume
        Continue an unfinished run of the same name from its last checkpoint. `--resume auto` starts it if there is
        none yet: one command for a first start and every retry.
    profile
        Trace a few steps of rank 0 with torch's profiler, into the run's folder: `tracking.profile=rank0`.
    """
    console = Console()
    settings = load(config, ("tracking.profile=rank0", *overrides) if profile else overrides)
    started = time.perf_counter()
    workers, least = settings.cluster.workers, settings.cluster.min_workers
    console.print(
        f"[bold]{settings.run.name}[/]  {settings.objective.name} · "
        f"{workers if least is None else f'{least} to {workers}'} worker(s) · "
        f"batch {settings.train.global_batch} · {settings.train.length} · {settings.run_dir}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    surrogate = make(settings.objective.name, **settings.objective.arguments()).surrogate
    if surrogate:
        console.print(f"its loss is a surrogate, {surrogate}: the gradient is given directly, the value need not fall")
    follower = Follower(console, step_times=settings.tracking.step_times)
    follower.say("checking the data and the run directory")
    settings = settle(settings, lambda text: follower.say(text, style="yellow"))
    directory = set_up(settings, resume=resume, tell=lambda text: follower.say(text, style="yellow"))
    signals = StopSignals(directory, follower.say)
    try:
        follower.say("joining the Ray cluster" if joins_cluster() else "starting Ray on this machine")
        with cluster(cpus=settings.cluster.workers * settings.cluster.cpus_per_worker):
            result = signals.call(lambda: train_on_ray(settings, directory, follower=follower))
    except RunFailed as failure:
        print(f"stopped: {visible(failure)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        number = signals.received or signal.SIGINT
        step = directory.last_step()
        kept = "nothing was trained yet" if step is None else f"the last checkpoint is of step {step:,}"
        print(f"{number.name}: stopped at once; {kept}; --resume auto continues", file=sys.stderr)
        return 128 + number
    _summarise(console, result, time.perf_counter() - started)
    return 0 if result.finished or signals.received is None else 128 + signals.received


def _summarise(console: Console, result: Result, seconds: float) -> None:
    if result.finished:
        console.print(summary_table(result))
        console.print(summary_lines(result, seconds), highlight=False, soft_wrap=True)
    else:
        console.print(
            f"stopped after step {result.step:,} as asked, with a checkpoint; --resume auto continues",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    run(app)
