"""Precomputed region features: ``{split}_ims.npy`` ``[N or 5N, R, F]`` with ``{split}_caps.txt``, five lines per image.

The format of VSE++ and SCAN. In the 5N form every image stands five times, once per caption; it is stored once here.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from allpairs.errors import UserError
from distributed.data.build import Incomplete
from distributed.data.dataset import BadSampleError
from distributed.data.images import decode_regions
from distributed.data.writer import Sample

CAPTIONS_PER_IMAGE = 5
SPLITS = {"train": "train", "dev": "val", "val": "val", "test": "test"}


def region_splits(folder: Path, incomplete: Incomplete) -> dict[str, Iterator[Sample]]:
    """Return the samples per split; arrays are memory-mapped, nothing is unpickled. Each is decoded as training does.

    Raises:
        UserError: nothing to read, or arrays and captions that do not fit together.
    """
    files = {
        split: folder / f"{stem}_ims.npy" for stem, split in SPLITS.items() if (folder / f"{stem}_ims.npy").is_file()
    }
    if not files:
        raise UserError(f"{folder}: no train_ims.npy, dev_ims.npy, val_ims.npy or test_ims.npy in it")
    opened = {split: (file, *_open(file)) for split, file in files.items()}
    return {split: _samples(*parts, incomplete) for split, parts in opened.items()}


def _open(file: Path) -> tuple[np.ndarray, list[str], int]:
    try:
        regions = np.lib.format.open_memmap(file, mode="r")  # plain arrays alone, where `load` tries other formats too
    except Exception as error:  # a hostile header can make numpy raise anything
        raise UserError(f"{file}: not a plain array ({' '.join(str(error).split())})") from error
    if regions.ndim != 3 or regions.dtype.kind != "f" or 0 in regions.shape:
        raise UserError(
            f"{file}: {regions.dtype} {list(regions.shape)}; expected floats [images, regions, features], none 0"
        )
    text = file.with_name(file.name.replace("_ims.npy", "_caps.txt"))
    try:
        captions = text.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{text}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{text}: not UTF-8 ({error.reason} at byte {error.start})") from error
    for step in (1, CAPTIONS_PER_IMAGE):
        if len(regions) * CAPTIONS_PER_IMAGE == len(captions) * step:
            return regions, captions, step
    raise UserError(
        f"{text}: {len(captions)} captions for {len(regions)} rows of {file.name}; expected "
        f"{CAPTIONS_PER_IMAGE} captions per row, or one per row with every image standing {CAPTIONS_PER_IMAGE} times"
    )


def _samples(
    file: Path, regions: np.ndarray, captions: list[str], step: int, incomplete: Incomplete
) -> Iterator[Sample]:
    for number in range(len(captions) // CAPTIONS_PER_IMAGE):
        stream = io.BytesIO()
        np.save(stream, regions[number * step], allow_pickle=False)
        first = number * CAPTIONS_PER_IMAGE
        texts = captions[first : first + CAPTIONS_PER_IMAGE]
        try:
            decode_regions(stream.getvalue())
        except BadSampleError as bad:
            incomplete.report(bad.cause, f"{file}: row {number * step}", captions=len(texts))
            continue
        if not any(map(str.strip, texts)):
            incomplete.report("no caption", f"{file}: row {number * step}")
            continue
        yield Sample(f"{number:08d}", "npy", stream.getvalue(), texts)
