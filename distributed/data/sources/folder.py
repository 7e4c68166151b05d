"""A folder of images, each beside a text file of the same name with one caption per line.

Columns of margins are read from a ``.json`` of the same name, as img2dataset writes it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allpairs.errors import UserError
from distributed.data.build import Incomplete, read_inside, split_by_seed
from distributed.data.columns import facts_in, margins_in
from distributed.data.index import parse_captions
from distributed.data.manifest import is_folder
from distributed.data.shards import IMAGE_SUFFIXES, readable
from distributed.data.writer import Sample

SPLITS = ("train", "val", "test")
TEXT = ".txt"
FACTS = ".json"


def folder_splits(
    folder: Path,
    incomplete: Incomplete,
    *,
    seed: int,
    val: float,
    test: float,
    follow_symlinks: bool = False,
    margin_columns: Sequence[str] = (),
) -> dict[str, Iterator[Sample]]:
    """Return the samples per split, sorted by path: subfolders train, val, test if there are any, else seeded splits.

    Text files without an image are left out and counted, whatever `incomplete` says: one may be a README.

    Raises:
        UserError: no such folder, no image in it, or a link that leads out of it.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder")
    subfolders = [split for split in SPLITS if (folder / split).is_dir()]
    if subfolders:
        parts = {split: (folder / split, _images(folder / split, incomplete)) for split in subfolders}
    else:
        names = split_by_seed(_images(folder, incomplete), seed=seed, val=val, test=test)
        parts = {split: (folder, part) for split, part in names.items()}
    return {split: _samples(*part, incomplete, follow_symlinks, margin_columns) for split, part in parts.items()}


def _images(folder: Path, incomplete: Incomplete) -> list[str]:
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    images = [file for file in files if file.suffix[1:].lower() in IMAGE_SUFFIXES]
    if not images:
        raise UserError(f"{folder}: no image ({', '.join(IMAGE_SUFFIXES)}) in it")
    pictured = {file.with_suffix("") for file in images}
    for text in sorted(file for file in files if file.suffix == TEXT and file.with_suffix("") not in pictured):
        incomplete.note("text file without an image beside it", str(folder / text), captions=_count(folder / text))
    return sorted(file.as_posix() for file in images)


def _count(text: Path) -> int:
    """Return how many captions a text file without an image seems to have."""
    try:
        return len(parse_captions(text.read_bytes(), "lines") or ())
    except OSError:
        return 0


def _samples(
    folder: Path, names: list[str], incomplete: Incomplete, follow_symlinks: bool, margin_columns: Sequence[str]
) -> Iterator[Sample]:
    for name in names:
        image = folder / name
        beside = image.with_suffix(TEXT)
        text = read_inside(beside, folder, follow_symlinks=follow_symlinks)
        if text is None:
            incomplete.report("no text file beside the image", str(image))
            continue
        captions = parse_captions(text, "lines")
        data = read_inside(image, folder, follow_symlinks=follow_symlinks)
        if readable(name) != name:
            incomplete.report("its name is not UTF-8", str(image), captions=len(captions or ()))
        elif captions is None:
            incomplete.report("text not UTF-8", str(beside))
        elif not captions:
            incomplete.report("no caption", str(beside))
        elif data is None:
            incomplete.report("no such image", str(image))
        else:
            extra: dict[str, Any] = {"filename": name}
            try:
                if margin_columns:
                    extra |= _margins(image.with_suffix(FACTS), folder, follow_symlinks, margin_columns, len(captions))
            except ValueError as error:
                incomplete.report("unusable margins", f"{image} ({error})", captions=len(captions))
                continue
            key = name.removesuffix(image.suffix).replace(".", "_")
            yield Sample(key, image.suffix[1:].lower(), data, captions, extra)


def _margins(
    file: Path, folder: Path, follow_symlinks: bool, columns: Sequence[str], captions: int
) -> dict[str, list[float]]:
    """Return the margins of a sample, from the file beside its image. Raises ValueError."""
    facts = facts_in(read_inside(file, folder, follow_symlinks=follow_symlinks))
    return {column: margins_in(facts, column, captions) for column in columns}
