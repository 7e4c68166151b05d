"""A folder of images, each beside a text file of the same name with one caption per line."""

from collections.abc import Iterator
from pathlib import Path

from allpairs.errors import UserError
from distributed.data.build import Incomplete, split_by_seed
from distributed.data.index import parse_captions
from distributed.data.shards import IMAGE_SUFFIXES
from distributed.data.writer import Sample

SPLITS = ("train", "val", "test")


def folder_splits(
    folder: Path, incomplete: Incomplete, *, seed: int, val: float, test: float
) -> dict[str, Iterator[Sample]]:
    """Return the samples per split, sorted by path: subfolders train, val, test if there are any, else seeded splits.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    subfolders = [split for split in SPLITS if (folder / split).is_dir()]
    if subfolders:
        return {split: _samples(folder / split, _images(folder / split), incomplete) for split in subfolders}
    parts = split_by_seed(_images(folder), seed=seed, val=val, test=test)
    return {split: _samples(folder, names, incomplete) for split, names in parts.items()}


def _images(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.suffix[1:].lower() in IMAGE_SUFFIXES and file.is_file())
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    if not names:
        raise UserError(f"{folder}: no image ({', '.join(IMAGE_SUFFIXES)}) in it")
    return names


def _samples(folder: Path, names: list[str], incomplete: Incomplete) -> Iterator[Sample]:
    for name in names:
        image = folder / name
        text = image.with_suffix(".txt")
        if not text.is_file():
            incomplete.report("no text file beside the image", str(image))
            continue
        captions = parse_captions(text.read_bytes(), "lines")
        if captions is None:
            incomplete.report("text not UTF-8", str(text))
        elif not captions:
            incomplete.report("no caption", str(text))
        else:
            key = name.removesuffix(image.suffix).replace(".", "_")
            yield Sample(key, image.suffix[1:].lower(), image.read_bytes(), captions, {"filename": name})
