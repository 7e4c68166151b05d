"""One Weights & Biases run per training run, on rank 0: offline unless told otherwise, continued after a restart.

metrics.jsonl is the record. A row's number there is its step in W&B, whichever process sends it, so that what W&B lacks
can be told and sent later (`distributed.tracking.sync`): by the process that goes on with the run, or by a command.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from allpairs.files import write_text
from distributed.config import Config
from distributed.data.images import open_image
from distributed.evaluation import THUMBNAIL_SIDE
from distributed.run_directory import RunDirectory
from distributed.tracking.examples import Example
from distributed.tracking.redact import redact
from distributed.tracking.segments import Segment, mend, segments
from retrieval_eval.metrics import RECALLS, RSUM, of_direction

if TYPE_CHECKING:
    import wandb

INIT_TIMEOUT = 30.0
"""Seconds a server has to let a run begin; every rank waits for rank 0 meanwhile."""
FINISH_TIMEOUT = 60.0
"""Seconds the end of a run waits for uploads; `sync` sends what did not make it."""
STOP_TIMEOUT = 10.0
"""The same where a run is stopped: who stops it (SLURM, Kubernetes) waits for seconds."""
WRITE_TIMEOUT = 10.0
"""Seconds the end of a run waits for wandb to write its file."""


class WandbRun:
    """A thin layer over `wandb.init`: our axes, our summaries, our table of examples, the rows W&B lacks."""

    def __init__(self, config: Config, run: RunDirectory, facts: dict[str, Any], *, over: bool = False) -> None:
        """Begin with the rows of metrics.jsonl that W&B lacks. `over`: nothing but these rows will follow.

        Raises:
            UserError: W&B refuses; where a run goes on, only offline can.
        """
        import wandb

        self._directory = run
        self._over = over
        rows = run.history()
        run.tracking_note.unlink(missing_ok=True)
        kept = mend(run, keep=None if over else len(rows), exit_code=1)
        with ExitStack() as opening:
            opening.enter_context(_files_inside(run))
            try:
                self._open(config, facts, config.tracking.wandb)
            except UserError as error:
                if over or config.tracking.wandb == "offline":
                    raise
                # The driver asked the server before it started us: it is gone since, and no reason to stop training.
                self._note(f"{error}; recorded offline from here")
                wandb.teardown()  # or it says that the run's id is in use
                kept = mend(run, keep=None if over else len(rows), exit_code=1)
                self._open(config, facts, "offline")
            self._opened = opening.pop_all()
        # Of a server we know where it stands, of files what each of them holds.
        self._held = range(self._run.starting_step) if self.online else {step for file in kept for step in file.rows}
        self.replayed = sum(number not in self._held for number in range(len(rows)))
        self._step = 0
        for row in rows:
            self.log(row)

    @property
    def online(self) -> bool:
        """Whether this process sends to a server."""
        return not self._run.offline

    def log(self, row: dict[str, Any]) -> None:
        """Send the next row of metrics.jsonl, unless W&B has it; `samples_seen` in it is the x-axis."""
        if self._step not in self._held:
            self._tell(lambda run: run.log(row, step=self._step, commit=True))
        self._step += 1

    def log_examples(self, embeddings: EmbeddingSet, examples: Sequence[Example]) -> None:
        """Send the table of example retrievals with thumbnails, and the thumbnails with captions as a panel.

        The panel is not a luxury: an offline run that is synced from another machine may lack the artifact in which
        W&B keeps a table's pictures.
        """
        import wandb

        table = wandb.Table(columns=["direction", "rank", "image", "query", "retrieved", "right answer"])
        panel = []
        for example in examples:
            picture = embeddings.thumbnails[example.picture]
            image = None if picture is None else open_image(picture, THUMBNAIL_SIDE**2)
            cell = None if image is None else wandb.Image(image)
            table.add_data(example.direction, example.rank, cell, example.query, example.retrieved, example.answer)
            if image is not None:
                rank = "beyond the search" if example.rank is None else f"rank {example.rank:g}"
                caption = f"{example.direction}, {rank}: {example.query} → {example.retrieved}"
                panel.append(wandb.Image(image, caption=caption))
        shown = {"examples": table} | ({"example_pictures": panel} if panel else {})
        self._tell(lambda run: run.log(shown, step=self._step, commit=True))

    def close(self, summary: dict[str, float] | None, *, failed: bool | None = None) -> None:
        """Write the final metrics into the summary and flush; `failed`, as a rule without them, marks the run so."""

        def end(run: "wandb.Run") -> None:
            run.summary.update(summary or {})
            run.finish(exit_code=int(summary is None if failed is None else failed))

        ending = Thread(target=self._tell, args=(end,), daemon=True)
        ending.start()
        ending.join(STOP_TIMEOUT if summary is None and not self._over else None)
        if ending.is_alive():
            self._listens = False
            self._note(f"Weights & Biases did not take the rest within {STOP_TIMEOUT:g} s")
        self._until_written()
        if self.online and self._listens:
            for segment in segments(self._directory):
                if not segment.sent:  # the server has been sent all that this file holds
                    segment.marker.touch()
        self._opened.close()

    def _until_written(self) -> None:
        """Wait for wandb's own process, which writes its last block after `finish` has returned."""
        file = Path(self._run.dir).parent / f"run-{self._run.id}.wandb"
        deadline = time.monotonic() + WRITE_TIMEOUT
        while self._listens and Segment.read(file).exit_code is None:
            if time.monotonic() > deadline:
                self._listens = False
                self._note(f"wandb did not write {file} within {WRITE_TIMEOUT:g} s")
            time.sleep(0.02)

    def _open(self, config: Config, facts: dict[str, Any], mode: str) -> None:
        import wandb

        tracking = config.tracking
        try:
            self._run = wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group,
                job_type=tracking.job_type,
                name=config.run.name,
                tags=redact(tracking.tags),
                id=_identity(self._directory),
                resume="allow",
                reinit="create_new",
                mode=mode,  # type: ignore[arg-type]
                dir=self._directory.root,
                config=redact(config.model_dump(mode="json") | {"provenance": facts}),
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    init_timeout=INIT_TIMEOUT,
                    finish_timeout=FINISH_TIMEOUT,
                    finish_timeout_raises=True,
                ),
            )
        except Exception as error:  # wandb's own, and what its inner workings raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"tracking.wandb={mode}: Weights & Biases refused: {reason}") from None
        self._listens = True
        self._run.define_metric("samples_seen")
        self._run.define_metric("*", step_metric="samples_seen")
        for split in ("val", "test"):
            for direction, metric in (("", RSUM), *product(("i2t/", "t2i/"), of_direction(RECALLS))):
                summary = "max" if metric.higher_is_better else "min"
                self._run.define_metric(
                    f"{split}/{direction}{metric.name}", step_metric="samples_seen", summary=summary
                )

    def _tell(self, what: Callable[["wandb.Run"], None]) -> None:
        """Do `what` with W&B's run, as long as it works: whatever breaks in there, training goes on without it."""
        if not self._listens:
            return
        try:
            what(self._run)
        except Exception as error:
            self._listens = False
            self._note(f"Weights & Biases does not listen any more ({type(error).__name__}: {error})")

    def _note(self, text: str) -> None:
        later = f"python -m distributed.tracking sync {self._directory.root}"
        write_text(self._directory.tracking_note, f"{' '.join(text.split())}; `{later}` sends what it lacks")


@contextmanager
def _files_inside(run: RunDirectory) -> Iterator[None]:
    """Let wandb keep staged artifacts and caches in the run directory, not at home, unless the user says where."""
    folders = {"WANDB_DATA_DIR": run.wandb / "data", "WANDB_CACHE_DIR": run.wandb / "cache"}
    ours = {variable: folder for variable, folder in folders.items() if variable not in os.environ}
    for variable, folder in ours.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(folder)
    try:
        yield
    finally:
        for variable in ours:
            del os.environ[variable]


def _identity(run: RunDirectory) -> str:
    """Return the id of `run` in W&B; made once, at random, and kept in the run directory."""
    if not run.wandb_id.exists():
        # Before there was this file a run's id was its name, as its files still say.
        files = sorted(run.wandb.glob("*run-*/run-*.wandb"))
        earlier = files[-1].stem.removeprefix("run-") if files else None
        write_text(run.wandb_id, earlier or secrets.token_hex(6))
    return run.wandb_id.read_text(encoding="utf-8").strip()
