"""Hashes of a folder's files, written beside them: what has changed since is never read without a word."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

from allpairs.errors import UserError
from allpairs.files import read_json, write_json

HASHES = "hashes.json"
_BLOCK = 2**20


class FileHash(TypedDict):
    """Size and SHA-256, in hex, of a file as it was written."""

    bytes: int
    sha256: str


Hashes = dict[str, FileHash]
"""By the file's name relative to its folder, with "/" between its parts."""


def sha256(path: Path, tell: Callable[[int], None] = lambda count: None) -> str:
    """Return the SHA-256 of a file's bytes, in hex; `tell` hears of every piece's size as it is read."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(view[:count])
            tell(count)
    return digest.hexdigest()


def files_in(folder: Path) -> list[str]:
    """Return the names of all files below `folder` that its hashes are to cover, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != HASHES)


def hash_files(folder: Path, names: Iterable[str]) -> Hashes:
    """Return the hashes of files of `folder`. Raises OSError."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in sorted(names)}


def write_hashes(folder: Path, hashes: Hashes) -> None:
    """Write `hashes` into `folder`, the last of its files."""
    write_json(folder / HASHES, hashes, indent=1)


def read_hashes(folder: Path) -> Hashes | None:
    """Return the hashes written into `folder`; None where there are none (it was written without).

    Raises:
        UserError: they cannot be read.
    """
    path = folder / HASHES
    if not path.exists():
        return None
    hashes = read_json(path)
    entries = hashes.values() if isinstance(hashes, dict) else [None]
    if not all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in entries):
        raise UserError(f"{path}: not the hashes of files")
    return hashes


def check_files(folder: Path, names: Iterable[str] | None = None) -> bool:
    """Compare files of `folder` with the hashes in it; False where it has no hashes to compare with.

    Args:
        folder: what `write_hashes` was called on.
        names: compare these files and subfolders only; None: everything that has a hash.

    Raises:
        UserError: names the first file that is missing, cut off, or holds other bytes than were written.
    """
    hashes = read_hashes(folder)
    if hashes is None:
        return False
    wanted = None if names is None else tuple(names)
    for name, written in hashes.items():
        if wanted is None or any(name == given or name.startswith(f"{given}/") for given in wanted):
            _check(folder / name, written)
    return True


def _check(path: Path, written: FileHash) -> None:
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            raise UserError(f"{path}: {size:,} bytes, but {written['bytes']:,} were written")
        if sha256(path) != written["sha256"]:
            raise UserError(f"{path}: holds other bytes than were written")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
