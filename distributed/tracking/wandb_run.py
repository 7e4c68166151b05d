"""One Weights & Biases run per training run, on rank 0: offline unless told otherwise, continued after a restart."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from distributed.config import Config
from distributed.data.images import open_image
from distributed.evaluation import THUMBNAIL_SIDE
from distributed.run_directory import RunDirectory
from distributed.tracking.examples import Example
from distributed.tracking.redact import redact
from retrieval_eval.metrics import RECALLS, RSUM, of_direction


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
                tags=redact(tracking.tags),
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
            for direction, metric in (("", RSUM), *product(("i2t/", "t2i/"), of_direction(RECALLS))):
                summary = "max" if metric.higher_is_better else "min"
                self._run.define_metric(
                    f"{split}/{direction}{metric.name}", step_metric="samples_seen", summary=summary
                )

    def log(self, row: dict[str, Any]) -> None:
        """Send one row of metrics; `samples_seen` in it is the x-axis."""
        self._run.log(row)

    def log_examples(self, embeddings: EmbeddingSet, examples: Sequence[Example]) -> None:
        """Send the table of example retrievals with thumbnails, and the thumbnails with captions as a panel.

        The panel is not a luxury: W&B keeps a table's pictures in an artifact outside the run's folder, which an
        offline run that is synced from another machine no longer has.
        """
        table = self._wandb.Table(columns=["direction", "rank", "image", "query", "retrieved", "right answer"])
        panel = []
        for example in examples:
            picture = embeddings.thumbnails[example.picture]
            image = None if picture is None else open_image(picture, THUMBNAIL_SIDE**2)
            cell = None if image is None else self._wandb.Image(image)
            table.add_data(example.direction, example.rank, cell, example.query, example.retrieved, example.answer)
            if image is not None:
                caption = f"{example.direction}, rank {example.rank:g}: {example.query} → {example.retrieved}"
                panel.append(self._wandb.Image(image, caption=caption))
        self._run.log({"examples": table} | ({"example_pictures": panel} if panel else {}))

    def close(self, summary: dict[str, float] | None) -> None:
        """Write the final metrics into the summary and flush; without them the run is marked as failed."""
        if summary is None:
            self._run.finish(exit_code=1)
        else:
            self._run.summary.update(summary)
            self._run.finish()
