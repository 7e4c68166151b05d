"""Run the trials of a search on Ray Tune, or go on with a search that was interrupted."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from allpairs.command import Resume
from allpairs.errors import UserError
from allpairs.files import write_text
from allpairs.terminal import visible
from distributed.config import Config
from distributed.config.load import read
from distributed.launch import choose_device
from distributed.run_directory import RunDirectory, refuse_job_folder
from distributed.tracking.segments import segments
from distributed.tracking.sync import sync
from retrieval_eval.ray_cluster import cluster, joins_cluster
from tune.config import Search
from tune.define_by_run import DefineByRun
from tune.following import SearchFollower
from tune.points import POINT, Point
from tune.results import Trial, evaluations
from tune.stopping import SearchSignals
from tune.trial import TrialPlan, run_trial

if TYPE_CHECKING:
    import ray.tune

DRIVER = "tune_driver"
"""The resource of which the driver of each trial holds one; were it a CPU, it would take those its workers need."""

FREE_TO_CHANGE = ("plot",)
"""Keys of a search that may differ when it is resumed; all others are part of what its trials mean."""


def open_folder(search: Search, *, resume: Resume) -> None:
    """Make the search's folder, or check that an existing one may be resumed.

    Raises:
        UserError: the name is taken, there is nothing to resume, or the search was started with other settings.
    """
    refuse_job_folder("dir", search.dir)
    file = search.folder / "search.yaml"
    now = search.model_dump(mode="json", exclude_unset=True)
    if file.exists():
        if not resume:
            raise UserError(f"search {search.folder} exists; --resume continues it. Otherwise choose another name")
        before = read(file)
        keys = sorted((before.keys() | now.keys()) - set(FREE_TO_CHANGE))
        changes = [
            f"{key}: {before.get(key)!r} before, {now.get(key)!r} now"
            for key in keys
            if before.get(key) != now.get(key)
        ]
        if changes:
            raise UserError(f"--resume: {search.folder} was started with other settings ({'; '.join(changes)})")
        texts = [params.read_text(encoding="utf-8").rstrip() for params in search.folder.glob("ray/*/params.json")]
        if any(text.endswith("}") and f'"{POINT}"' not in text for text in texts):  # a kill leaves one empty or cut
            raise UserError(
                f"--resume: {search.folder} is of an earlier version; accepted: another name, or its version"
            )
    elif resume is True:
        raise UserError(f"--resume: there is no search {search.folder} to resume")
    search.folder.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def run_search(
    plan: TrialPlan, configs: list[Config], signals: SearchSignals, say: Callable[[str], None]
) -> list[Trial]:
    """Run every trial of `plan` that has not ended, and return all of them; `configs` are what they may come to.

    A signal ends it with its running trials saved; `say` prints a line.

    Raises:
        UserError: the cluster offers no `tune_driver`.
    """
    import ray

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # metrics.jsonl and W&B hold what they would write
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's banner; our lines say what happens
    search = plan.search
    workers = max(config.cluster.workers * config.cluster.cpus_per_worker for config in configs)
    cpus = search.max_concurrent_trials * workers
    say("joining the Ray cluster" if joins_cluster() else "starting Ray on this machine")
    with search_cluster(cpus, search.max_concurrent_trials):
        # A failed trial is one line, and a reason in the table; the traceback lies in ray/TRIAL/error.txt.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        gpus = ray.cluster_resources().get("GPU", 0)
        for note in sorted({note for config in configs if (note := choose_device(config.cluster, gpus)[1])}):
            say(note)
        tuner = _tuner(plan, configs)
        with SearchFollower(search, plan.count, say).following():
            signals.call(tuner.fit)
    trials = read_trials(search)
    for trial in trials:
        _complete_tracking(trial)
    return trials


def read_trials(search: Search) -> list[Trial]:
    """Return the trials Ray Tune has noted for `search`, with the metrics of their run directories."""
    from ray.tune import ExperimentAnalysis

    trials = []
    for noted in ExperimentAnalysis(str(search.folder / "ray")).trials:
        run = RunDirectory(search.run_dir(noted.trial_id))
        summary = run.read_summary()
        reason = _reason(noted, run) if noted.status == "ERROR" else ""
        if noted.status == "ERROR":
            status = "failed"
        elif noted.status != "TERMINATED":
            status = "unfinished"
        else:
            status = "stopped early" if summary is None else "finished"
        point = Point.decode(noted.config)
        measured = evaluations(run), reason, summary or {}
        trials.append(Trial(noted.trial_id, point.values, status, run.root, *measured, point.reference))  # type: ignore[arg-type]
    return trials


@contextmanager
def search_cluster(cpus: int, drivers: int) -> Iterator[None]:
    """Be connected to a Ray where `drivers` trials can have a driver each.

    Raises:
        UserError: the cluster offers none.
    """
    import ray

    with cluster(cpus, resources={DRIVER: drivers}, dashboard=True):
        if ray.cluster_resources().get(DRIVER, 0) < 1:
            raise UserError(
                f"this Ray cluster offers no {DRIVER!r}, of which each trial's driver holds one; start its head with "
                f"--resources='{{\"{DRIVER}\": 8}}' (deploy/ray-cluster.yaml does)"
            )
        yield


def _tuner(plan: TrialPlan, configs: list[Config]) -> "ray.tune.Tuner":
    import ray.tune
    from ray.tune.logger import JsonLoggerCallback

    from tune.progress import Recorder

    search = plan.search

    def trial(values: dict[str, Any]) -> None:
        run_trial(plan, Point.decode(values).values)

    trainable = ray.tune.with_resources(trial, {DRIVER: 1})
    folder = search.folder / "ray"
    if ray.tune.Tuner.can_restore(str(folder)):
        return ray.tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, resume_errored=True)
    return ray.tune.Tuner(
        trainable,
        param_space=param_space(plan),
        tune_config=ray.tune.TuneConfig(
            metric=search.metric,
            mode=search.mode,
            num_samples=plan.count if search.algorithm == "optuna" else 1,
            max_concurrent_trials=search.max_concurrent_trials,
            search_alg=make_searcher(search),
            scheduler=_scheduler(search, configs),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            callbacks=[Recorder(search), JsonLoggerCallback()],
        ),
    )


def make_searcher(search: Search) -> Any:
    """Return what hands out the trials."""
    if search.algorithm == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = DefineByRun(search.space)
        return OptunaSearch(space, metric=search.metric, mode=search.mode, seed=search.seed)
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator()


def param_space(plan: TrialPlan) -> dict[str, Any]:
    """Return the parameters of Ray Tune's trials: the points in their order; none for optuna, which makes its own."""
    import ray.tune

    points = [point.encode()[POINT] for point in plan.points]
    return {POINT: ray.tune.grid_search(points)} if points else {}


def _scheduler(search: Search, configs: list[Config]) -> Any:
    if search.scheduler == "none":
        return None
    from tune.early_stop import AskingASHA

    # A budget in samples is some number of epochs that only the data know; ASHA wants an end beyond it.
    return AskingASHA(search, max(c.train.epochs if c.train.samples is None else 1000 for c in configs))


def _complete_tracking(trial: Trial) -> None:
    """Let W&B have all of a trial that ended: Tune kills the workers of one that it stops early."""
    run = RunDirectory(trial.run_dir)
    if trial.status == "unfinished" or not run.config.exists() or read(run.config)["tracking"]["wandb"] == "disabled":
        return
    files = segments(run)
    if files and files[-1].exit_code == 0 and not run.tracking_note.exists():
        return  # its own process told everything and ended well
    try:
        sync(run, failed=trial.status == "failed", over=True)
    except UserError as error:
        print(f"{trial.id}: {visible(error)}", flush=True)


def _reason(noted: Any, run: RunDirectory) -> str:
    """Return why a trial failed: what its ranks agreed on, else the last line of its error."""
    import json

    if run.stopped.exists():
        return str(json.loads(run.stopped.read_text(encoding="utf-8"))["reason"])
    lines = str(noted.get_error()).strip().splitlines()
    return lines[-1].removeprefix("allpairs.errors.UserError: ") if lines else "unknown"
