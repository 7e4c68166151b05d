"""One Weights & Biases run per training run, on rank 0: offline unless told otherwise, continued after a restart."""

import io
from typing import Any

from PIL import Image

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from distributed.config import Config
from distributed.run_directory import RunDirectory
from distributed.tracking.examples import Example
from distributed.tracking.redact import redact


class WandbRun:
    """A thin layer over `wandb.init`: our axes, our summaries, our table of examples."""

    def __init__(self, config: Config, run: RunDirectory, facts: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        tracking = config.tracking
        try:
            self._run = wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group,
                job_type=tracking.job_type,
                name=config.run.name,
                tags=list(tracking.tags),
                id=config.run.name,  # stable: a restart of this run continues the same curves
                resume="allow",
                mode=tracking.wandb,
                dir=run.root,
                config=redact(config.model_dump(mode="json") | {"provenance": facts}),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(f"tracking.wandb={tracking.wandb}: Weights & Biases refused: {error}") from None
        self._run.define_metric("samples_seen")
        self._run.define_metric("*", step_metric="samples_seen")
        for split in ("val", "test"):
            for recall in ("rsum", *(f"{way}/r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))):
                self._run.define_metric(f"{split}/{recall}", step_metric="samples_seen", summary="max")

    def log(self, row: dict[str, Any]) -> None:
        """Send one row of metrics; `samples_seen` in it is the x-axis."""
        self._run.log(row)

    def log_examples(self, embeddings: EmbeddingSet, examples: list[Example]) -> None:
        """Send the table of example retrievals with thumbnails, and the thumbnails with captions as a panel.

        The panel is not a luxury: W&B keeps a table's pictures in an artifact outside the run's folder, which an
        offline run that is synced from another machine no longer has.
        """
        table = self._wandb.Table(columns=["direction", "rank", "image", "query", "retrieved", "right answer"])
        panel = []
        for example in examples:
            picture = embeddings.thumbnails[example.picture]
            image = None if picture is None else Image.open(io.BytesIO(picture))
            cell = None if image is None else self._wandb.Image(image)
            table.add_data(example.direction, example.rank, cell, example.query, example.retrieved, example.answer)
            if image is not None:
                caption = f"{example.direction}, rank {example.rank:g}: {example.query} → {example.retrieved}"
                panel.append(self._wandb.Image(image, caption=caption))
        self._run.log({"examples": table} | ({"example_pictures": panel} if panel else {}))

    def finish(self, summary: dict[str, float]) -> None:
        """Write the final metrics into the summary and flush."""
        self._run.summary.update(summary)
        self._run.finish()

    def abandon(self) -> None:
        """Flush and mark the run as failed."""
        self._run.finish(exit_code=1)
