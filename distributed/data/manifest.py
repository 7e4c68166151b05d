"""The manifest of a data set folder: what it holds, in which shards, with which hashes; and which folders hold one."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allpairs.errors import UserError
from allpairs.files import write_text

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = "index.arrow"
SPLIT_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Shard:
    """One tar file; `file` is relative to the manifest's folder, or absolute for shards indexed where they lie."""

    file: str
    samples: int
    captions: int
    bytes: int
    sha256: str


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

    format: int
    name: str
    split: str
    source: dict[str, Any]
    kind: str
    text: str
    samples: int
    captions: int
    index_bytes: int
    index_sha256: str
    shards: list[Shard]

    def write(self, folder: Path) -> None:
        """Write `folder`/manifest.json; the same content gives the same bytes."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        write_text(folder / MANIFEST, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read `folder`/manifest.json. Raises UserError when it is broken or of another format."""
        file = folder / MANIFEST
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            found = fields["format"]
            if found != FORMAT:
                raise UserError(
                    f"{file}: format {found} is not the format {FORMAT} of this version; build the data again"
                )
            shards = [Shard(**shard) for shard in fields.pop("shards")]
            manifest = cls(**fields, shards=shards)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{file}: not a data manifest ({type(error).__name__}: {error}); build the data again"
            ) from error
        if manifest.samples != sum(shard.samples for shard in shards):
            raise UserError(f"{file}: {manifest.samples} samples in all, but its shards add up to another number")
        return manifest


def shard_path(name: str, folder: Path) -> Path:
    """Return where shard `name` of a manifest in `folder` lies.

    Raises:
        UserError: the name asks for a command or a remote address; only files are read.
    """
    if name.startswith("pipe:") or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name):
        scheme = name.split(":", 1)[0]
        raise UserError(
            f"shard {name!r}: {scheme!r} addresses are refused, only files are read (no commands, no downloads)"
        )
    return folder / name


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_folders(folder: Path) -> list[Path]:
    """Return the data set folders under `folder`: itself when it holds a manifest or shards, otherwise its splits.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / MANIFEST).is_file() or any(folder.glob("*.tar")):
        return [folder]
    splits = sorted({file.parent for file in (*folder.glob(f"*/{MANIFEST}"), *folder.glob("*/*.tar"))})
    if not splits:
        raise UserError(f"{folder}: neither {MANIFEST} nor shards (*.tar), in it or in its subfolders")
    return sorted(splits, key=lambda path: (SPLIT_ORDER.index(path.name) if path.name in SPLIT_ORDER else 9, path.name))
