"""Search over configuration keys: `python -m tune.search --config configs/tune/NAME.yaml [key=value ...] [--resume]`.

A `key=value` sets a key of the search (`trials=20`) or, for all trials, one of the configuration (`train.epochs=4`).
The keys of a search are documented in `tune/config.py`. Everything lands in `dir/name`: `results.csv`, `search.png` and
`.svg`, with `seeds` also `settings.csv` and `.tex`, and each trial's run directory below `trials/`.
"""

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from allpairs.command import Resume, run
from allpairs.models import reads_regions
from allpairs.terminal import visible
from distributed.config import Config
from distributed.tracking.server import settle
from tune.config import load_search
from tune.trial import TrialPlan

if TYPE_CHECKING:
    from tune.results import Trial

app = App(name="python -m tune.search", help=__doc__, version_flags=[])


@app.default
def search(*arguments: str, config: Annotated[Path, Parameter(name="--config")], resume: Resume = False) -> int:
    """Run a search and report it; exit code 1 when no trial was measured or some are to go.

    SIGTERM or Ctrl-C: the running trials save a checkpoint at the step they are in and the command ends with 128 plus
    the signal's number; a second one ends it at once.

    Parameters
    ----------
    arguments
        `key=value` over the search file, in order; values are YAML.
    config
        YAML file of the search, e.g. configs/tune/margin_scale.yaml.
    resume
        Go on with an interrupted search of the same name: ended trials are kept, others continue their runs.
        `--resume auto` starts it if there is none yet.
    """
    from tune.runner import open_folder, run_search
    from tune.stopping import SearchSignals

    started = time.perf_counter()
    settings = load_search(config, arguments)
    plan = TrialPlan.of(settings)
    configs = plan.check()
    _check_data(configs)
    settle(configs[0], _say, runs=f"{settings.folder}/trials/*")
    open_folder(settings, resume=resume)
    print(
        f"{settings.name}  {settings.algorithm} search over {', '.join(settings.space)} · "
        f"{plan.count} trials, {settings.max_concurrent_trials} at a time · {settings.folder}",
        flush=True,
    )
    signals = SearchSignals(settings, _say)
    try:
        trials = run_search(plan, configs, signals, _say)
    except KeyboardInterrupt:
        number = signals.received or signal.SIGINT
        print(f"{number.name}: stopped at once; --resume auto continues from the last checkpoints", file=sys.stderr)
        return 128 + number
    code = _report(plan, trials, time.perf_counter() - started)
    return 128 + signals.received if code and signals.received else code


def _say(text: str) -> None:
    print(f"  {visible(text)}", flush=True)


def _check_data(configs: list[Config]) -> None:
    """Refuse data that no trial, or not every trial, could train on; most searches share one data set."""
    from distributed.launch import check_data

    for config in {
        (config.data, config.train.global_batch, reads_regions(config.model)): config for config in configs
    }.values():
        check_data(config, lambda text: print(visible(text), flush=True))


def _report(plan: TrialPlan, trials: list["Trial"], seconds: float) -> int:
    from rich.console import Console

    from distributed.progress import duration
    from tune.plots import draw
    from tune.results import write_csv
    from tune.settings import settings_of, table, write_settings

    settings = plan.search
    folder = settings.folder
    write_csv(folder / "results.csv", trials, settings)
    console = Console()
    console.print()
    grouped = settings_of(trials, settings)
    console.print(table(grouped, settings))
    if settings.seeds > 1:
        write_settings(folder, grouped, settings)
    measured = [trial for trial in trials if trial.best(settings.metric, settings.mode) is not None]
    if measured:
        draw(folder / "search.png", settings_of(measured, settings), plan)
    console.print(
        f"\n{len(measured)} of {len(trials)} trials measured, {duration(seconds)}\nresults  {folder / 'results.csv'}\n"
        + (f"settings {folder / 'settings.csv'} (and .tex): mean ± std\n" if settings.seeds > 1 else "")
        + (f"plot     {folder / 'search.png'} (and .svg)\n" if measured else "")
        + (f"errors   {folder / 'ray'}/*/error.txt\n" if any(trial.status == "failed" for trial in trials) else "")
        + f"runs     {folder / 'trials'}",
        highlight=False,
        soft_wrap=True,
    )
    unfinished = sum(trial.status == "unfinished" for trial in trials)
    if unfinished:
        console.print(f"interrupted with {unfinished} trials to go; --resume auto continues them", style="yellow")
    return 0 if measured and not unfinished else 1


if __name__ == "__main__":
    run(app)
