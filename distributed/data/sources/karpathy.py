"""Karpathy-schema JSON with a folder of images (COCO, Flickr30K and their like).

Schema: images[].{filename, filepath?, split (train/restval/val/test), imgid?, sentences[].{raw, tokens?}}, from
Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015. Columns of margins
are further keys of the sentences, or of the images for all sentences alike.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from allpairs.errors import UserError, nearest
from distributed.data.build import Incomplete, read_inside
from distributed.data.columns import margins_in
from distributed.data.documents import read_document
from distributed.data.manifest import is_folder
from distributed.data.shards import IMAGE_SUFFIXES, readable
from distributed.data.writer import Sample

# restval are the images of COCO's validation set that everyone trains on as well.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_STRICT = ConfigDict(strict=True)


def _known_split(name: str) -> str:
    if name not in SPLITS:
        raise ValueError(f"unknown split{nearest(name, SPLITS)}")
    return name


def _safe_path(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("leads out of the folder of images")
    return name


def _picture(name: str) -> str:
    if PurePosixPath(name).suffix[1:].lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"not one of {', '.join(IMAGE_SUFFIXES)}")
    return _safe_path(name)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One caption, as it was written or as its words."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    raw: str | None = None
    tokens: list[str] | None = None

    @property
    def text(self) -> str:
        """The caption."""
        return self.raw or " ".join(self.tokens or ())


@dataclass(frozen=True, slots=True)
class Entry:
    """One image with its captions."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    filename: Annotated[str, Field(min_length=1), AfterValidator(_picture)]
    split: Annotated[str, AfterValidator(_known_split)]
    sentences: list[Sentence]
    filepath: Annotated[str, AfterValidator(_safe_path)] = ""
    imgid: Any = None
    cocoid: Any = None


@dataclass(frozen=True, slots=True)
class Document:
    """The whole file."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    images: Annotated[list[Entry], Field(min_length=1)]
    dataset: str | None = None


_SHAPE = TypeAdapter(Document)


def karpathy_splits(
    file: Path,
    images: Path,
    incomplete: Incomplete,
    *,
    follow_symlinks: bool = False,
    margin_columns: Sequence[str] = (),
) -> tuple[str, dict[str, Iterator[Sample]]]:
    """Return the data set's name and its samples per split, in the file's order.

    Raises:
        UserError: the JSON is not of this schema (names the entry), or the folder of images does not exist.
    """
    if not is_folder(images):
        raise UserError(f"--images {images}: no such folder")
    document = read_document(file, _SHAPE, "a Karpathy-schema JSON")
    # Read a second time where the schema's own keys are not enough.
    facts = (
        json.loads(file.read_text(encoding="utf-8-sig"))["images"] if margin_columns else [{}] * len(document.images)
    )
    parts: dict[str, list[tuple[Entry, dict[str, Any]]]] = {}
    for entry, known in zip(document.images, facts, strict=True):
        columns = {column: _column(known, column) for column in margin_columns}
        parts.setdefault(SPLITS[entry.split], []).append((entry, columns))
    splits = {split: _samples(part, images, incomplete, follow_symlinks) for split, part in parts.items()}
    return document.dataset or readable(file.stem), splits


def _column(entry: Mapping[str, Any], column: str) -> Any:
    """Return a column's value for an image of the file: its own, or a list of its sentences'."""
    return entry[column] if column in entry else [sentence.get(column) for sentence in entry["sentences"]]


def _samples(
    entries: list[tuple[Entry, dict[str, Any]]], images: Path, incomplete: Incomplete, follow_symlinks: bool
) -> Iterator[Sample]:
    for entry, columns in entries:
        relative = PurePosixPath(entry.filepath) / entry.filename
        captions = [sentence.text for sentence in entry.sentences]
        if not any(map(str.strip, captions)):
            incomplete.report("no caption", str(relative))
        elif (data := read_inside(images / relative, images, follow_symlinks=follow_symlinks)) is None:
            incomplete.report("no such image", str(images / relative), captions=len(captions))
        else:
            facts = {name: getattr(entry, name) for name in ("cocoid", "filename", "imgid", "split")}
            extra = {name: value for name, value in facts.items() if value is not None} | columns
            try:
                for column in columns:
                    margins_in(columns, column, len(captions))
            except ValueError as error:
                incomplete.report("unusable margins", f"{relative} ({error})", captions=len(captions))
                continue
            key = relative.with_name(relative.stem.replace(".", "_")).as_posix()
            yield Sample(key, relative.suffix[1:].lower(), data, captions, extra)
