"""Write a split's embeddings under a checkpoint of a run, for analysis and evaluation; one process, without Ray.

python -m distributed.embed --run runs/emoji --split train --out embeddings/emoji
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter

from allpairs import models
from allpairs.command import run as run_command
from allpairs.embeddings import EmbeddingSet, refuse_other_than_embeddings
from allpairs.errors import UserError, nearest
from allpairs.files import existing
from allpairs.hashes import check_files
from allpairs.objectives import PairObjective, make
from distributed.checkpoints import POSITION, load_objective, read_progress
from distributed.config import Config
from distributed.config.load import read, validate
from distributed.data import open_dataset
from distributed.evaluation import embedding_set, encode, origin_of
from distributed.run_directory import RunDirectory
from distributed.world import Stopped, World

app = App(name="python -m distributed.embed", help=__doc__, help_format="plaintext", version_flags=[])


@app.default
def embed(
    *,
    run: Annotated[Path, Parameter(help="Folder of a training run.")],
    split: Annotated[str, Parameter(help="train, val or test: the data set folder of this name in the run's config.")],
    out: Annotated[Path, Parameter(help="Folder to write.")],
    checkpoint: Annotated[Literal["best", "last"], Parameter(help="Checkpoint of the run.")] = "best",
    overwrite: Annotated[bool, Parameter(help="Replace embeddings that are there.", negative=())] = False,
) -> None:
    """Encode every image of a split and all its captions."""
    _check_out(out, overwrite=overwrite)
    embeddings = embed_split(run, split, checkpoint)
    embeddings.write(out)
    print(
        f"written: {out}, {len(embeddings.images):,} images and {len(embeddings.captions):,} captions "
        f"at step {embeddings.origin.step:,}"
    )


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse what could not be written, before hours of encoding."""
    if out.suffix in (".safetensors", ".npy", ".npz", ".pt", ".parquet") and not out.is_dir():
        raise UserError(f"--out {out}: embeddings are a folder; accepted: --out {out.with_suffix('')}")
    refuse_other_than_embeddings(out)
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} exists already; give another, or --overwrite to replace it")


def embed_split(run: Path, split: str, checkpoint: str) -> EmbeddingSet:
    """Return the embeddings of `split` under checkpoint "best" or "last" of the run in folder `run`.

    Weights are frozen, without dropout or augmentation (C §5).

    Raises:
        UserError: a run, split, checkpoint or data set that is not there or cannot be read.
    """
    directory = RunDirectory(run)
    config = validate(read(existing(directory.config)), source=str(directory.config))
    if split not in config.data.splits:
        raise UserError(f"--split {split!r}: {run} has no such split{nearest(split, config.data.splits)}")
    folder = existing(directory.checkpoints / checkpoint).resolve()
    encoder, vocabulary = models.load(folder)
    if not check_files(folder, (POSITION,)):
        print(f"checkpoint {folder} was written without hashes, so its files are not verified", file=sys.stderr)
    device = torch.device("cuda" if torch.cuda.is_available() and config.cluster.device != "cpu" else "cpu")
    dataset = open_dataset(config.data.folder(split))
    try:
        encoded = encode(encoder.to(device), dataset, vocabulary, config, World(0, 1, None, device))
    except Stopped as stopped:
        raise UserError(str(stopped)) from None
    assert encoded is not None, "a single rank is rank 0"
    origin = origin_of(config, checkpoint, read_progress(folder).step, _objective(config, folder))
    return embedding_set(encoded, dataset, split, origin, max_image_pixels=config.data.max_image_pixels)


def _objective(config: Config, folder: Path) -> PairObjective[Any]:
    """Return the objective as it was at the checkpoint in `folder`."""
    objective = make(config.objective.name, **config.objective.arguments())
    load_objective(folder, objective)
    return objective


if __name__ == "__main__":
    run_command(app)
