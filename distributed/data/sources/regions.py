"""Precomputed region features: ``{split}_ims.npy`` ``[N or 5N, R, F]`` with ``{split}_caps.txt``, five lines per image.

The format of VSE++ and SCAN. In the 5N form every image stands five times, once per caption; it is stored once here.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from allpairs.errors import UserError
from distributed.data.writer import Sample

CAPTIONS_PER_IMAGE = 5
SPLITS = {"train": "train", "dev": "val", "val": "val", "test": "test"}


def region_splits(folder: Path) -> dict[str, Iterator[Sample]]:
    """Return the samples per split; arrays are memory-mapped, nothing is unpickled.

    Raises:
        UserError: nothing to read, or arrays and captions that do not fit together.
    """
    files = {
        split: folder / f"{stem}_ims.npy" for stem, split in SPLITS.items() if (folder / f"{stem}_ims.npy").is_file()
    }
    if not files:
        raise UserError(f"{folder}: no train_ims.npy, dev_ims.npy, val_ims.npy or test_ims.npy in it")
    return {split: _samples(*_open(file)) for split, file in files.items()}


def _open(file: Path) -> tuple[np.ndarray, list[str], int]:
    try:
        regions = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not a plain array ({error})") from error
    if regions.ndim != 3 or regions.dtype.kind != "f":
        raise UserError(f"{file}: {regions.dtype} {list(regions.shape)}; expected floats [images, regions, features]")
    text = file.with_name(file.name.replace("_ims.npy", "_caps.txt"))
    try:
        captions = text.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: {error}") from error
    for step in (1, CAPTIONS_PER_IMAGE):
        if len(regions) * CAPTIONS_PER_IMAGE == len(captions) * step:
            return regions, captions, step
    raise UserError(
        f"{text}: {len(captions)} captions for {len(regions)} rows of {file.name}; expected "
        f"{CAPTIONS_PER_IMAGE} captions per row, or one per row with every image standing {CAPTIONS_PER_IMAGE} times"
    )


def _samples(regions: np.ndarray, captions: list[str], step: int) -> Iterator[Sample]:
    for number in range(len(captions) // CAPTIONS_PER_IMAGE):
        stream = io.BytesIO()
        np.save(stream, regions[number * step], allow_pickle=False)
        first = number * CAPTIONS_PER_IMAGE
        yield Sample(f"{number:08d}", "npy", stream.getvalue(), captions[first : first + CAPTIONS_PER_IMAGE])
