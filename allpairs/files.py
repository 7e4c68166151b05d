"""Files: written whole or not at all, and refused with one clear line where they are missing or broken."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from allpairs.errors import UserError, nearest

_SIBLINGS = 20
"""A folder with more entries is not listed in a message."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, beside `path`, that becomes `path` when the block ends well and vanishes when it fails.

    A reader, or a crash at any moment, meets the old content or the new one, on the disk too, never half. The folder is
    made if need be. The new file follows the umask, as any file does, also where its writer (safetensors, say) keeps it
    to its owner: others on shared storage may read what they may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.touch()
    mode = stat.S_IMODE(partial.stat().st_mode)
    partial.unlink()
    try:
        yield partial
        partial.chmod(mode)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` that becomes `path` when the block ends well and vanishes when it fails.

    Whatever `path` was goes then, not before: whether it may go is the caller's question.
    """
    path = path.resolve()  # "." has neither name nor parent to work with
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.parent / f".{path.name}.new-{os.getpid()}"
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    fresh.mkdir()
    try:
        yield fresh
        if path.exists():
            path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def adding_to_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder whose files all move into `path` when the block ends well, and vanish when it fails.

    `path` is made if need be; a file of a name that it holds is replaced, every other one stays.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield fresh
        path.mkdir(exist_ok=True)
        for file in sorted(fresh.iterdir()):
            file.replace(path / file.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


_ENDINGS = (".csv", ".html", ".json", ".md", ".npy", ".npz", ".parquet", ".pdf", ".png", ".pt", ".safetensors", ".tex",
            ".trec", ".txt", ".yaml", ".zip")  # fmt: skip


def check_folder_to_write(
    flag: str, folder: Path, what: str, *, overwrite: bool, patterns: Sequence[str] = ("*",)
) -> None:
    """Refuse, before hours of work, a folder to write to that is a file, or named like one, or holds what is written.

    `patterns` are the names of what would be written; `what` names it in the plural; `overwrite` allows replacing it.
    """
    if folder.is_file() or (folder.suffix.lower() in _ENDINGS and not folder.is_dir()):
        other = f"{flag} {folder.with_suffix('')}" if folder.suffix.lower() in _ENDINGS else "a folder"
        raise UserError(f"{flag} {folder}: {what} are a folder; accepted: {other}")
    if overwrite or not folder.is_dir():
        return
    there = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if there:
        which = folder if "*" in patterns else there[0]
        raise UserError(f"{flag} {which} exists already; give another, or --overwrite to replace it")


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, with line ends as they are, in place of what was there; return `path`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
    return path


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> Path:
    """Write `value` as JSON in place of what was there; return `path`."""
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def unwritable(error: BaseException) -> str | None:
    """Say in the system's words why a file could not be written; None where `error` came from something else.

    torch and safetensors tell of a full disk by errors of their own, which name it beside or behind them.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.strerror:
            return behind.strerror
        _, found, text = str(behind).partition("I/O error: ")
        if found:
            return text.partition(" (os error")[0]
        behind = behind.__cause__ or behind.__context__
    return None


def disk_is_full(error: OSError) -> bool:
    """Whether `error` says that nothing more can be written there, however often it is tried."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def existing(path: Path) -> Path:
    """Return `path`; UserError with the nearest name beside its first missing part if it is not there."""
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    names = [entry.name for entry in missing.parent.iterdir()]
    hint = nearest(missing.name, names) if 0 < len(names) <= _SIBLINGS or get_close_matches(missing.name, names) else ""
    raise UserError(f"{path} does not exist: no {missing.name!r} in {missing.parent}{hint}")


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError with line and column when it is malformed."""
    try:
        return json.loads(existing(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
    except (UnicodeDecodeError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
