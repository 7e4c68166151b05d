"""Write embeddings under a checkpoint of a run, for evaluation and analysis; one process, without Ray.

python -m distributed.embed --run runs/emoji --split val                # for evaluate --run runs/emoji --split val
python -m distributed.embed --run runs/emoji --data data/scenes         # the test split of other data
python -m distributed.embed --run runs/emoji --split train --out analysis/train
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter

from allpairs import models
from allpairs.command import run as run_command
from allpairs.embeddings import EmbeddingSet, refuse_other_than_embeddings
from allpairs.errors import UserError, nearest
from allpairs.files import check_folder_to_write, existing
from allpairs.hashes import check_files
from allpairs.objectives import PairObjective, make
from allpairs.terminal import visible
from distributed.checkpoints import POSITION, load_objective, read_progress
from distributed.config import Config
from distributed.config.load import read, validate
from distributed.data import open_dataset
from distributed.data.batch import describe_dropped, dropped_metrics
from distributed.data.manifest import MANIFEST
from distributed.data.verify import open_verified
from distributed.evaluation import embedding_set, encode, origin_of
from distributed.run_directory import RunDirectory
from distributed.world import Stopped, World

app = App(name="python -m distributed.embed", help=__doc__, help_format="plaintext", version_flags=[])


@app.default
def embed(
    *,
    run: Annotated[Path, Parameter(help="Folder of a training run.")],
    data: Annotated[
        Path | None,
        Parameter(help="Any data set of `python -m distributed.data`, or one split of it; default: the run's own."),
    ] = None,
    split: Annotated[
        str | None, Parameter(help="Split of the data: train, val, test (the default) or another.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="Folder to write; default: in the run, where `retrieval_eval.evaluate --run RUN` looks."),
    ] = None,
    checkpoint: Annotated[Literal["best", "last"], Parameter(help="Checkpoint of the run.")] = "best",
    overwrite: Annotated[bool, Parameter(help="Replace embeddings that are there.", negative=())] = False,
) -> None:
    """Encode every image of a split and all its captions."""
    directory = RunDirectory(run)
    config = validate(read(existing(directory.config)), source=str(directory.config))
    source = _own_split(run, config, split) if data is None else _split_of(data, split, config)
    if out is None and checkpoint != "best":
        last = directory.embeddings(f"{source.name}-{checkpoint}")
        raise UserError(
            f"--checkpoint {checkpoint} needs --out: embeddings in a run are those of its best checkpoint, unless their"
            f" name says otherwise; accepted: --out {last}"
        )
    folder = out or directory.embeddings(source.name)
    refuse_other_than_embeddings(folder)
    check_folder_to_write("--out", folder, "embeddings", overwrite=overwrite)
    embeddings = embed_split(directory, config, source, checkpoint)
    embeddings.write(folder)
    print(
        f"written: {folder}, {len(embeddings.images):,} images and {len(embeddings.captions):,} captions "
        f"at step {embeddings.origin.step:,}"
    )
    which = f"--embeddings {folder}" if out is not None else f"--run {run} --split {source.name}"
    print(f"measure: python -m retrieval_eval.evaluate {which}")


@dataclass(frozen=True)
class Source:
    """A split to embed: where it lies, what its data set calls it, and the name of its embeddings in a run."""

    folder: Path
    split: str
    name: str


def _own_split(run: Path, config: Config, split: str | None) -> Source:
    splits = config.data.splits
    split = split or splits[-1]
    if split not in splits:
        raise UserError(f"--split {split!r}: {run} has no such split{nearest(split, splits)}; --data gives other data")
    return Source(config.data.folder(split), split, split)


def _split_of(data: Path, split: str | None, config: Config) -> Source:
    """Find a split in the data set folder `data`, which may be one split itself."""
    data = existing(data).resolve()
    if (data / MANIFEST).is_file():
        if split not in (None, data.name):
            raise UserError(f"--data {data} is one split: {data.name}; accepted: --data {data.parent} --split {split}")
        data, split = data.parent, data.name
    splits = [found.parent.name for found in sorted(data.glob(f"*/{MANIFEST}"))]
    if not splits:
        open_dataset(data)  # which says what is missing
    split = split or ("test" if "test" in splits or len(splits) > 1 else splits[0])
    if split not in splits:
        raise UserError(f"--split {split!r}: {data} has no such split{nearest(split, splits)}")
    is_own = split in config.data.splits and (data / split) == config.data.folder(split)
    return Source(data / split, split, split if is_own else f"{data.name}-{split}")


def embed_split(directory: RunDirectory, config: Config, source: Source, checkpoint: str) -> EmbeddingSet:
    """Return the embeddings of a split under checkpoint "best" or "last" of a run.

    Weights are frozen, without dropout or augmentation (C §5).

    Raises:
        UserError: a checkpoint or data set that is not there, cannot be read or does not fit the other.
    """
    folder = existing(directory.checkpoints / checkpoint).resolve()
    encoder, vocabulary = models.load(folder)
    if not check_files(folder, (POSITION,)):
        _say(f"checkpoint {folder} was written without hashes, so its files are not verified")
    device = torch.device("cuda" if torch.cuda.is_available() and config.cluster.device != "cpu" else "cpu")
    how = config.data.verify
    dataset = open_verified(source.folder, how, anew=how == "always", say=_say)
    wanted = "regions" if models.reads_regions(config.model) else "image"
    if dataset.kind != wanted:
        raise UserError(f"{source.folder} holds {dataset.kind} data; the model of {directory.root} reads {wanted} data")
    try:
        encoded = encode(encoder.to(device), dataset, vocabulary, config, World(0, 1, None, device))
    except (Stopped, ValueError) as error:  # ValueError: region features of another size than the model's
        raise UserError(f"{source.folder}: {error}") from None
    assert encoded is not None, "a single rank is rank 0"
    if dropped := describe_dropped(dropped_metrics(source.split, encoded.dropped)):
        _say(f"left out, as they cannot be used: {dropped}")
    origin = origin_of(config, checkpoint, read_progress(folder).step, _objective(config, folder))
    return embedding_set(encoded, dataset, source.split, origin, max_image_pixels=config.data.max_image_pixels)


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)


def _objective(config: Config, folder: Path) -> PairObjective[Any]:
    """Return the objective as it was at the checkpoint in `folder`."""
    objective = make(config.objective.name, **config.objective.arguments())
    load_objective(folder, objective)
    return objective


if __name__ == "__main__":
    run_command(app)
