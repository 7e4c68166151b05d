"""Start a run on Ray and bring its result home."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allpairs.command import Resume
from allpairs.errors import UserError
from allpairs.files import read_json
from allpairs.models import (
    DualSpec,
    RegionsSpec,
    Tokens,
    VsrnSpec,
    WholeSpec,
    check_networks,
    check_text,
    load_tokens,
    make_tokens,
    reads_regions,
    save_tokens,
    skeleton,
)
from distributed.cached import refuse_batch_statistics
from distributed.checkpoints import checkpoint_of
from distributed.config import Config
from distributed.config.deepspeed import require_deepspeed, unknown_settings
from distributed.config.tree import Cluster
from distributed.data import Dataset, open_split
from distributed.data.dataset import BadSampleError, shared_pictures
from distributed.data.images import decode_regions
from distributed.data.margins import check_column
from distributed.data.sources.shuffled import note_of
from distributed.data.verify import write_stamps
from distributed.progress import Follower
from distributed.provenance import note_session
from distributed.run_directory import RunDirectory, prepare, refuse_job_folder, refuse_taken, writable
from distributed.tracking.server import settle
from retrieval_eval.indexes.probe import require_faiss
from retrieval_eval.run_files import read_rows

if TYPE_CHECKING:
    from ray.train import ScalingConfig
    from ray.train.v2.api.callback import UserCallback

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line of a worker would appear twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; silences its warning
}


_PLURAL = {"image": "images", "regions": "regions"}


class RunFailed(RuntimeError):  # noqa: N818 -- said to the user as it is
    """A run that stopped before its end, with the reason all ranks agreed on."""


@dataclass(frozen=True)
class Result:
    """What a run leaves: the last metrics of each kind, best validation RSUM among them, and where to look."""

    metrics: dict[str, float]
    run_dir: Path
    finished: bool
    step: int
    """The step of the last checkpoint."""


def fit(config: Config, *, resume: Resume = False, callbacks: Sequence["UserCallback"] = ()) -> Result:
    """Set a run up and train it with Ray Train, which must be initialised (`retrieval_eval.ray_cluster.cluster`).

    A finished run that is resumed returns at once.

    Raises:
        UserError, RunFailed: as `set_up` and `train_on_ray`.
    """
    config = settle(config)
    return train_on_ray(config, set_up(config, resume=resume), callbacks=callbacks)


def train_on_ray(
    config: Config,
    run: RunDirectory,
    *,
    callbacks: Sequence["UserCallback"] = (),
    follower: Follower | None = None,
) -> Result:
    """Train in the directory that `set_up` laid out; `follower` shows progress while the run goes on.

    Raises:
        UserError: the cluster lacks what the run asks for.
        RunFailed: all ranks agreed to stop (non-finite loss, too many bad samples), or workers failed again after
            `cluster.max_failures` restarts.
    """
    if not run.summary.exists():
        with follower.following(run) if follower is not None else nullcontext():
            _run_on_ray(config, run, callbacks, tell=follower.say if follower is not None else None)
        if run.stopped.exists():
            raise RunFailed(json.loads(run.stopped.read_text(encoding="utf-8"))["reason"])
    metrics = _last_metrics(run) | (run.read_summary() or {})
    return Result(metrics, run.root, finished=run.summary.exists(), step=run.last_step() or 0)


def set_up(config: Config, *, resume: Resume, tell: Callable[[str], None] = lambda text: None) -> RunDirectory:
    """Check everything that can be checked before workers start, and lay out the run directory with its vocabulary.

    `tell` hears what a person should know of the data: pictures that are in two splits, a comparison that takes time;
    and of a hub that is asked.

    Raises:
        UserError: the run directory is taken or cannot be written, data are missing, altered or do not fit the model, a
            network of the model or a package is not to be had.
    """
    refuse_job_folder("run.dir", config.run.dir)
    if config.eval.engine == "faiss":
        require_faiss("eval.engine=faiss")
    if config.train.strategy == "deepspeed":
        require_deepspeed()
    run = refuse_taken(config, resume=resume)
    for line in unknown_settings(config.train.deepspeed):
        tell(line)
    datasets = check_data(config, tell)
    if run.has_checkpoint:
        _refuse_other_data(run, datasets)
    else:  # a checkpoint needs neither hub nor another run
        check_networks(config.model, tell)
        for key, value in (
            ("train.micro_batch", config.train.micro_batch),
            ("cluster.min_workers", config.cluster.min_workers),
        ):
            if value is not None:
                refuse_batch_statistics(skeleton(config.model), f"{key}={value}")
        check_text(config.model, config.data.max_caption_tokens)
        if config.model.init_from is not None:
            checkpoint_of(config.model.init_from)
    run = prepare(config, resume=resume)
    if not run.summary.exists():
        with writable(config):
            note_session(run.provenance, config)
            if not run.vocabulary.exists() and not run.tokenizer.exists():
                save_tokens(run.root, _make_tokens(datasets["train"], config))
            for split, dataset in datasets.items():
                write_stamps(run.verified(split), dataset, dataset.stamps)
    return run


def _run_on_ray(
    config: Config, run: RunDirectory, callbacks: Sequence["UserCallback"], tell: Callable[[str], None] | None
) -> None:
    from ray.train import FailureConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from distributed.scaling import ElasticTrainer
    from distributed.supervision import Supervisor
    from distributed.worker import train_worker

    cluster = config.cluster
    # Ray reads these in this process. It asks for the workers anew after this time, and gives them up after that one,
    # which is ours to decide.
    limits = [60.0] if cluster.wait_minutes is None else [60.0, cluster.wait_minutes * 60]
    if cluster.min_workers is not None:  # where there is less room than there seemed to be
        limits.append(max(5.0, cluster.replace_minutes * 60))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{min(limits):g}"
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = f"{2 * cluster.stuck_after * 60:g}"

    settings = config.model_dump(mode="json")
    settings["run"]["dir"] = str(run.root.parent)  # workers live in other folders: every path is made absolute here
    settings["data"] |= {split: str(config.data.folder(split)) for split in config.data.splits}
    settings["model"] = _with_absolute_folders(settings["model"], fresh=not run.has_checkpoint)
    # Ray's own bookkeeping of this attempt. The name is new each time: under a known name Ray would silently resume by
    # its rules, while ours (checkpoints/last) also survive another number of workers.
    attempt = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    elastic = cluster.min_workers is not None
    trainer = (partial(ElasticTrainer, config) if elastic else TorchTrainer)(
        train_worker,
        train_loop_config={"config": settings},
        scaling_config=_scaling(config, tell),
        run_config=RunConfig(
            name=attempt,
            storage_path=str(run.root / "ray"),
            failure_config=FailureConfig(max_failures=config.cluster.max_failures),
            callbacks=[*callbacks, Supervisor(config)],  # type: ignore[list-item]  # Ray picks between two RunConfigs when it runs
            worker_runtime_env={"env_vars": QUIET},  # type: ignore[call-arg]
        ),
    )
    earlier = len(read_rows(run.events))
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failed = [row for row in read_rows(run.events)[earlier:] if row["event"] == "failed"]
        raise RunFailed(failed[-1]["text"] if failed else Supervisor(config).explain(error)) from None
    finally:
        shutil.rmtree(run.heartbeats, ignore_errors=True)


def check_data(config: Config, say: Callable[[str], None] = lambda text: None) -> dict[str, Dataset]:
    """Open every split of the run before anything starts, shards compared with their hashes as `data.verify` asks.

    `say` hears of comparisons that take time, of pictures that are in two splits, and of captions shuffled on purpose.

    Raises:
        UserError: a folder is missing, broken, altered, holds regions where the model reads images (or the reverse) or
            regions of another length than the model reads, or was given relative to a job's temporary folder.
    """
    data = config.data
    roots = {"data.root": data.root} if data.root != Path() else {f"data.{s}": getattr(data, s) for s in data.splits}
    if config.model.init_from is not None:
        roots["model.init_from"] = Path(config.model.init_from)
    for key, path in roots.items():
        refuse_job_folder(key, path)
    datasets = {}
    run, anew = RunDirectory(config.run_dir), data.verify == "always"
    model = config.model
    wanted = "regions" if reads_regions(model) else "image"
    reader = f"model.kind={model.kind}" if isinstance(model, WholeSpec) else f"model.image.kind={model.image.kind}"
    for split in config.data.splits:
        folder = config.data.folder(split)
        try:
            datasets[split] = dataset = open_split(config.data, split, known=run.verified(split), anew=anew, say=say)
        except UserError as error:
            raise UserError(f"data.{split}: {error}") from None
        if dataset.kind != wanted:
            raise UserError(
                f"data.{split}: {folder} holds {_PLURAL[dataset.kind]}, but {reader} reads {_PLURAL[wanted]}"
            )
        if isinstance(model, DualSpec) and isinstance(model.image, RegionsSpec | VsrnSpec):
            found = _features(dataset)
            if found not in (None, model.image.features):
                raise UserError(
                    f"data.{split}: {folder} holds regions of {found} features, but model.image.features="
                    f"{model.image.features}; accepted: {found}"
                )
    if len(datasets["train"]) < config.train.global_batch:
        raise UserError(
            f"train.global_batch={config.train.global_batch} is larger than data.train, which has "
            f"{len(datasets['train'])} images; accepted: at most that many"
        )
    if config.margins.column is not None:
        check_column(datasets["train"], config.margins.column)
    for line in (note_of(datasets["train"].manifest), *shared_pictures(datasets)):
        if line is not None:
            say(f"data: {line}")
    return datasets


def _features(dataset: Dataset) -> int | None:
    """Return the length of the first regions that can be used; None where there are none among the first samples."""
    for row in range(min(len(dataset), 100)):
        with suppress(BadSampleError):
            return decode_regions(dataset.read(row).data).shape[1]
    return None


def _refuse_other_data(run: RunDirectory, datasets: dict[str, Dataset]) -> None:
    """Raise UserError where a run that goes on would find other data than it was started with, built anew since."""
    before = read_json(run.provenance)["data"] if run.provenance.exists() else {}
    for split, dataset in datasets.items():
        found = before.get(split, {}).get("index_sha256", dataset.manifest.index_sha256)
        shards = read_json(run.verified(split))["shards"] if run.verified(split).exists() else {}
        hashes = [sha256 for _, _, sha256 in shards.values()]
        same = found == dataset.manifest.index_sha256
        if not same or (hashes and hashes != [shard.sha256 for shard in dataset.manifest.shards]):
            raise UserError(
                f"--resume: data.{split}: {dataset.folder} was built anew with other content since {run.root} was "
                "started; accepted are the data it was started with, or another run.name"
            )


def _make_tokens(dataset: Dataset, config: Config) -> Tokens:
    data = config.data
    if config.model.init_from is not None:  # its weights mean its own words
        return load_tokens(checkpoint_of(config.model.init_from), config.model)
    limits = {"min_count": data.vocabulary_min_count, "max_size": data.vocabulary_max_size}
    return make_tokens(config.model, dataset.all_captions, **limits)


def _with_absolute_folders(settings: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
    """Return a model's settings with the names that are local folders made absolute, and where weights come from."""
    settings = {
        key: _with_absolute_folders(value, fresh=fresh) if key in ("image", "text") else value
        for key, value in settings.items()
    }
    if "name" in settings and Path(settings["name"]).is_dir():
        settings["name"] = str(Path(settings["name"]).resolve())
    if fresh and settings.get("init_from"):
        settings["init_from"] = str(checkpoint_of(settings["init_from"]))
    return settings


def choose_device(cluster: Cluster, gpus: float) -> tuple[bool, str | None]:
    """Return whether each worker gets one of the `gpus`, and what to say where that was left to us and none does.

    Raises:
        UserError: GPUs are asked for, and there is none.
    """
    if cluster.device == "gpu" and gpus < 1:
        raise UserError("cluster.device=gpu: this Ray cluster has no GPU; accepted: auto, cpu")
    least = cluster.min_workers or cluster.workers
    if cluster.device != "auto" or gpus >= least:
        return cluster.device != "cpu", None
    found = f"{gpus:g} GPU(s) for {least} workers" if gpus else "no GPU"
    return False, f"cluster.device=auto: {found} on this Ray cluster, so this run computes on CPUs"


def _scaling(config: Config, tell: Callable[[str], None] | None) -> "ScalingConfig":
    import ray
    from ray.train import ScalingConfig

    use_gpu, note = choose_device(config.cluster, ray.cluster_resources().get("GPU", 0))
    if note is not None and tell is not None:
        tell(note)
    most, least = config.cluster.workers, config.cluster.min_workers
    return ScalingConfig(
        num_workers=most if least is None else (least, most),  # type: ignore[arg-type]  # Ray picks between two here too
        use_gpu=use_gpu,
        resources_per_worker={"CPU": config.cluster.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
    )


def _last_metrics(run: RunDirectory) -> dict[str, float]:
    """Return the latest value of every metric in metrics.jsonl."""
    merged: dict[str, float] = {}
    for row in run.history():
        merged |= row
    return merged
