"""The manifest of a data set folder: what it holds, in which shards, with which hashes; and which folders hold one."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from allpairs.errors import UserError
from allpairs.files import write_text
from distributed.data.documents import read_document

FORMAT = 2
MANIFEST = "manifest.json"
INDEX = "index.arrow"
SPLIT_ORDER = ("train", "val", "test")
_LONGEST_NAME = 255  # bytes, on every file system in use

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TextMode = Literal["lines", "whole"]
Kind = Literal["image", "regions"]
_STRICT = ConfigDict(strict=True, extra="forbid")


def _known_format(value: int) -> int:
    if value != FORMAT:
        raise ValueError(f"this version reads format {FORMAT}; build the data again")
    return value


@dataclass(frozen=True)
class Shard:
    """One tar file; `file` is relative to the manifest's folder, or absolute for shards indexed where they lie."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    file: Annotated[str, Field(min_length=1)]
    samples: Count
    captions: Count
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class Manifest:
    """What one split of a data set holds.

    Attributes:
        format: version of this file's schema.
        name: the data set.
        split: ``train``, ``val``, ``test`` or the user's own.
        source: how it was built (kind and the settings that decide its content).
        kind: ``image``, or ``regions`` for precomputed region features.
        text: ``lines`` when each line of a ``.txt`` member is a caption, ``whole`` when the member is one caption.
        samples: all samples; the row of a sample, counted over the shards in order, is its id.
        captions: all captions.
        index_bytes: size of the index file.
        index_sha256: hash of the index file.
        shards: the shards, in the order that numbers the rows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    format: Annotated[int, AfterValidator(_known_format)]
    name: str
    split: str
    source: dict[str, Any]
    kind: Kind
    text: TextMode
    samples: Count
    captions: Count
    index_bytes: Count
    index_sha256: Sha256
    shards: list[Shard]

    def write(self, folder: Path) -> None:
        """Write `folder`/manifest.json; the same content gives the same bytes."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        write_text(folder / MANIFEST, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read `folder`/manifest.json. Raises UserError when it is broken or of another format."""
        file = folder / MANIFEST
        manifest = read_document(file, _SHAPE, "a data manifest")
        for what in ("samples", "captions"):
            if getattr(manifest, what) != sum(getattr(shard, what) for shard in manifest.shards):
                raise UserError(
                    f"{file}: {getattr(manifest, what)} {what} in all, but its shards add up to another number"
                )
        return manifest


_SHAPE = TypeAdapter(Manifest)


def shard_path(name: str, folder: Path) -> Path:
    """Return where shard `name` of a manifest in `folder` lies.

    Raises:
        UserError: the name asks for a command or a remote address (only files are read), or no file can have it.
    """
    if "\0" in name or any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(name).parts):
        raise UserError(f"shard {name!r}: no file has such a name")
    if name.startswith("pipe:") or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name):
        scheme = name.split(":", 1)[0]
        raise UserError(
            f"shard {name!r}: {scheme!r} addresses are refused, only files are read (no commands, no downloads)"
        )
    return folder / name


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder; also where no folder could have this name."""
    try:
        return path.is_dir()
    except OSError:
        return False


def split_folders(folder: Path) -> list[Path]:
    """Return the data set folders under `folder`: itself when it holds a manifest or shards, otherwise its splits.

    Raises:
        UserError: there is none.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder")
    if (folder / MANIFEST).exists() or any(folder.glob("*.tar")):
        return [folder]
    splits = sorted({file.parent for file in (*folder.glob(f"*/{MANIFEST}"), *folder.glob("*/*.tar"))})
    if not splits:
        raise UserError(f"{folder}: neither {MANIFEST} nor shards (*.tar), in it or in its subfolders")
    return sorted(splits, key=lambda path: (SPLIT_ORDER.index(path.name) if path.name in SPLIT_ORDER else 9, path.name))
