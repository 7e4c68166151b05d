"""Regions for want of a detector: every picture of a data set cut into tiles, whose pixels are the features.

Shapes: g tiles along a side · p pixels along a tile's.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from allpairs.errors import UserError
from distributed.data.build import Incomplete
from distributed.data.dataset import BadSampleError, Dataset, open_dataset
from distributed.data.images import decode_image
from distributed.data.manifest import split_folders
from distributed.data.writer import Sample

_MAX_PIXELS = 50_000_000


def tile_splits(folder: Path, incomplete: Incomplete, *, grid: int, side: int) -> dict[str, Iterator[Sample]]:
    """Return the samples per split of the data set in `folder`: ``[g·g, 3·p·p]`` float32 of each picture, in [-1, 1].

    Raises:
        UserError: no data set of pictures, or a `grid` or `side` that is not at least 1.
    """
    for flag, value in (("--grid", grid), ("--side", side)):
        if not 1 <= value <= 64:
            raise UserError(f"{flag} {value}: accepted is 1 to 64")
    datasets = {path.name: open_dataset(path) for path in split_folders(folder)}
    for dataset in datasets.values():
        if dataset.kind != "image":
            raise UserError(f"{dataset.folder} holds {dataset.kind} already; accepted: a data set of pictures")
    return {split: _samples(dataset, incomplete, grid, side) for split, dataset in datasets.items()}


def _samples(dataset: Dataset, incomplete: Incomplete, grid: int, side: int) -> Iterator[Sample]:
    for row in range(len(dataset)):
        try:
            sample = dataset.read(row)
            picture = decode_image(sample.data, grid * side, _MAX_PIXELS)
        except BadSampleError as bad:
            incomplete.report(bad.cause, dataset.where(row))
            continue
        stream = io.BytesIO()
        np.save(stream, cut(picture, grid), allow_pickle=False)
        yield Sample(sample.key, "npy", stream.getvalue(), sample.captions)


def cut(picture: np.ndarray, grid: int) -> np.ndarray:
    """Cut uint8 ``[3, g·p, g·p]`` into tiles, row by row: float32 ``[g·g, 3·p·p]`` from -1 (black) to 1."""
    side = picture.shape[1] // grid
    tiles = picture.reshape(3, grid, side, grid, side).transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
    return tiles.astype(np.float32) / 127.5 - 1
