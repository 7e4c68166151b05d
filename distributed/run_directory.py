"""What lies where in a run directory, and whether a run may start, go on, or is finished."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from allpairs.command import Resume
from allpairs.errors import UserError
from allpairs.files import read_json, write_text
from distributed.config import Config, dump
from distributed.config.load import read, validate
from retrieval_eval.run_files import read_rows

FREE_TO_CHANGE = ("run.dir", "data.root", "data.verify", "data.cache_mb", "data.threads", "eval", "tracking", "cluster",
                  "train.log_every", "train.checkpoint_every_minutes", "train.checkpoint_every_steps",
                  "train.compare_every_steps", "train.activation_checkpointing", "train.stop_after_epochs",
                  "train.strategy", "train.zero_stage", "train.deepspeed")  # fmt: skip
"""Keys that may differ when a run is resumed: none of them changes what is learned from which sample.

(`cluster.workers` regroups the batch-norm statistics and the rounding, not the stream of global batches.)
"""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, git commit, machine and data manifests."""
        return self.root / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """`best`, `last`, and the step folders they point to."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """Of a finished run: the model of the best checkpoint, whole under every strategy, for others to load."""
        return self.root / "model"

    @property
    def vocabulary(self) -> Path:
        """The words of the training captions, collected once."""
        return self.root / "vocabulary.json"

    @property
    def tokenizer(self) -> Path:
        """Instead of `vocabulary`: the tokenizer that a pretrained text model brought."""
        return self.root / "tokenizer"

    @property
    def summary(self) -> Path:
        """Final metrics; exists only once the run is finished."""
        return self.root / "summary.json"

    @property
    def stopped(self) -> Path:
        """Why all workers stopped together, when they did."""
        return self.root / "stopped.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.root / "report.html"

    @property
    def wandb(self) -> Path:
        """What Weights & Biases writes, its tables, artifacts and caches too."""
        return self.root / "wandb"

    @property
    def wandb_id(self) -> Path:
        """The run's id there, random: two people's runs of one name stay apart."""
        return self.wandb / "id.txt"

    @property
    def tracking_note(self) -> Path:
        """What Weights & Biases lacks and how to send it, in one line; exists only then."""
        return self.wandb / "note.txt"

    @property
    def events(self) -> Path:
        """What happened to the workers, one JSON object per line: asked for, up, lost, restarted; and their notes."""
        return self.root / "events.jsonl"

    @property
    def noisy_pairs(self) -> Path:
        """Of a run with `train.recipe: ncr`: the training pairs called noisy, the least matching first."""
        return self.root / "noisy_pairs.parquet"

    @property
    def heartbeats(self) -> Path:
        """Signs of life of the ranks while the run goes on."""
        return self.root / "heartbeats"

    def profile(self, rank: int) -> Path:
        """The profiler's trace of some steps on one rank (`tracking.profile`), for Chrome's and Perfetto's viewers."""
        return self.root / "profile" / f"rank-{rank:05d}.json.gz"

    @property
    def stacks(self) -> Path:
        """What every rank's code was doing when one last stood still."""
        return self.root / "stacks.txt"

    def heartbeat(self, rank: int) -> Path:
        """The sign of life of one rank."""
        return self.heartbeats / f"rank-{rank:05d}.json"

    def verified(self, split: str) -> Path:
        """Stamps of the shards of `split` as the driver compared them with their hashes."""
        return self.root / "verified" / f"{split}.json"

    def embeddings(self, split: str) -> Path:
        """Embeddings of `split` under the best checkpoint, the hand-over to `retrieval_eval`."""
        return self.root / "embeddings" / split

    def read_summary(self) -> dict[str, float] | None:
        """Return the final metrics of a finished run, else None."""
        return json.loads(self.summary.read_text(encoding="utf-8")) if self.summary.exists() else None

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one, whatever it is worth."""
        return (self.checkpoints / "last").is_symlink() or (self.checkpoints / "last").exists()

    def last_step(self) -> int | None:
        """Return the step of the last checkpoint; None where there is none.

        Raises:
            UserError: it does not say.
        """
        position = self.checkpoints / "last" / "position.json"
        if not position.exists():
            return None
        try:
            return int(read_json(position)["step"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{position}: not a readable training position ({error})") from None

    def note(self, event: str, text: str, **more: Any) -> None:
        """Add what happened to `events`, for the driver to say. The run goes on where it cannot be written."""
        row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, "text": text, **more}
        with suppress(OSError), self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl; a half-written last line (a killed run) is left out."""
        return read_rows(self.metrics)


def prepare(config: Config, *, resume: Resume) -> RunDirectory:
    """Create the run directory, or check that an existing one may be resumed with `config`.

    Raises:
        UserError: as `refuse_taken`, or it cannot be written.
    """
    run = refuse_taken(config, resume=resume)
    with writable(config):
        run.root.mkdir(parents=True, exist_ok=True)
        write_text(run.config, dump(config))
        run.stopped.unlink(missing_ok=True)
    return run


@contextmanager
def writable(config: Config) -> Iterator[None]:
    """Say in one line that the run directory cannot be written, where the block finds it out."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run.dir={config.run.dir}: {error.filename or config.run_dir} cannot be written ({error.strerror}); "
            "accepted is a folder on storage with room that every node may write to"
        ) from None


def refuse_taken(config: Config, *, resume: Resume) -> RunDirectory:
    """Return the run's directory where a run may start, or go on, there; nothing is written.

    Raises:
        UserError: the name is taken, or the resumed run was started with other settings.
    """
    run = RunDirectory(config.run_dir)
    if run.root.exists() and not run.root.is_dir():
        raise UserError(f"run.dir={config.run.dir}: {run.root} is a file; choose another run.name or run.dir")
    if run.config.exists():
        if not resume:
            state = "is finished" if run.summary.exists() else "exists but is not finished; --resume continues it"
            raise UserError(f"run {run.root} {state}. Choose another run.name, or remove the folder")
        _refuse_other_settings(run, config)
    elif run.root.exists() and any(run.root.iterdir()):
        raise UserError(
            f"{run.root} exists and is not a run of ours (no config.yaml): choose another run.name or run.dir"
        )
    elif resume is True and not run.root.exists():
        raise UserError(f"--resume: there is no run {run.root} to resume{_neighbours(run.root)}")
    return run


def refuse_job_folder(key: str, path: Path) -> None:
    """Raise UserError where `path`, given as `key`, lies in the copy of the code that Ray unpacks for a job.

    Ray deletes it, and it is another folder on every node.
    """
    folder = path.expanduser().resolve()
    if {"runtime_resources", "working_dir_files"} <= set(folder.parts):
        short = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else Path(folder.name)
        raise UserError(
            f"{key}={short} lies in the temporary folder of this job, which Ray deletes; accepted is an absolute "
            f"path on storage that every node mounts: {key}=$PWD/{short} from the shell that submits, or "
            f"{key}=/shared/{short}"
        )


def _refuse_other_settings(run: RunDirectory, config: Config) -> None:
    before = flat(validate(read(run.config), source=str(run.config)).model_dump(mode="json"))
    now = flat(config.model_dump(mode="json"))
    differing = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE)
    ]
    if differing:
        changes = ", ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in differing)
        raise UserError(
            f"--resume: {run.root} was started with other settings ({changes}); use the same, or another run.name"
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by their dotted names."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def _neighbours(root: Path) -> str:
    from allpairs.errors import nearest

    runs = [path.parent.name for path in root.parent.glob("*/config.yaml")] if root.parent.is_dir() else []
    return nearest(root.name, runs) if runs else ""
