"""Altered shards never train silently: each is compared with the manifest's hash, once, and again when it has changed.

A stamp holds a shard's size and time of modification, in nanoseconds, when its hash was right. Stamps of a folder lie
in it (`verified.json`) or, where it cannot be written, in the user's cache. They are of the folder's path: a copy
elsewhere is compared anew. What changes a file and neither its size nor its time (a bit that rots on the disk) is seen
by `data.verify=always` alone.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from allpairs.errors import UserError
from allpairs.files import read_json, write_json
from allpairs.hashes import sha256
from distributed.config.tree import Data
from distributed.data.dataset import Dataset, open_dataset
from distributed.data.manifest import MANIFEST, Shard, shard_path

STAMPS = "verified.json"
_THREADS = 8
"""Shards compared at a time: hashing keeps a core busy, a network file system several readers."""
_FIRST, _EVERY = 1.0, 10.0
"""Seconds after which it is said what takes so long, and seconds between progress lines."""

Say = Callable[[str], None]
Stamp = list[int | str]
"""Size, time of modification, and the hash that was right then."""
Stamps = dict[str, Stamp]
"""By the shard's name in the manifest."""


def open_split(
    data: Data,
    split: str,
    *,
    known: Path | None = None,
    anew: bool = False,
    say: Say = lambda text: None,
) -> Dataset:
    """Open one of a run's splits, as `open_verified` does by `data.verify`; `say` hears the split's key first."""
    return open_verified(
        data.folder(split), data.verify, known=known, anew=anew, say=lambda text: say(f"data.{split}: {text}")
    )


def open_verified(
    folder: Path,
    how: Literal["once", "always", "never"],
    *,
    known: Path | None = None,
    anew: bool = False,
    say: Say = lambda text: None,
) -> Dataset:
    """Open the data set `folder`, its shards compared with the manifest.

    Args:
        folder: one split.
        how: "never": without comparing; else whatever has no valid stamp is compared.
        known: a file of stamps to go by beside the folder's own: what the driver found, for its workers.
        anew: compare every shard, whatever the stamps say.
        say: hears what is compared, and how far it is, where that takes more than a second.

    Raises:
        UserError: as `open_dataset`; or a shard doesn't hold the bytes that the manifest was written for.
    """
    dataset = open_dataset(folder)
    if how != "never":
        dataset.stamps = verify_shards(dataset, known=known, anew=anew, say=say)
    return dataset


def verify_shards(dataset: Dataset, *, known: Path | None, anew: bool, say: Say) -> Stamps:
    """Compare the shards that have no valid stamp with the manifest, and stamp them; return all stamps.

    On one machine a folder is compared once at a time: who comes second waits, and finds the stamps.

    Raises:
        UserError: names the first shard that holds other bytes, or cannot be read.
    """
    folder = dataset.folder.resolve()
    try:
        if not anew and not _unstamped(dataset, stamps := _read(folder, known)):
            return stamps
        with _alone(folder, say):
            stamps = {} if anew else _read(folder, known)
            progress = _Progress(_unstamped(dataset, stamps), say)
            with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
                for shard, stamp in pool.map(lambda shard: (shard, _compare(shard, folder, progress)), progress.shards):
                    stamps[shard.file] = stamp
            progress.done()
            stamps = {shard.file: stamps[shard.file] for shard in dataset.manifest.shards}
            _keep(folder, dataset, stamps)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    return stamps


def write_stamps(path: Path, dataset: Dataset, stamps: Stamps) -> None:
    """Write stamps of `dataset`'s shards. Raises OSError."""
    write_json(path, {"folder": str(dataset.folder.resolve()), "shards": stamps}, indent=None)


def _keep(folder: Path, dataset: Dataset, stamps: Stamps) -> None:
    for place in _places(folder):
        with suppress(OSError):
            write_stamps(place, dataset, stamps)
            return


def _read(folder: Path, known: Path | None) -> Stamps:
    stamps: Stamps = {}
    for place in (*_places(folder), *([known] if known is not None else [])):
        try:
            found = read_json(place) if place.is_file() else {}
            if found and found["folder"] == str(folder):
                stamps |= found["shards"]
        except (UserError, KeyError, TypeError, ValueError):
            continue  # torn, or not ours: compared anew
    return stamps


def _places(folder: Path) -> list[Path]:
    """Return where stamps of `folder` may lie: in it, and for one that cannot be written in the user's cache."""
    places = [folder / STAMPS]
    with suppress(RuntimeError):  # nobody's home
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(base / "allpairs/verified" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}.json")
    return places


def _unstamped(dataset: Dataset, stamps: Stamps) -> list[Shard]:
    return [
        shard
        for shard in dataset.manifest.shards
        if stamps.get(shard.file) != _stamp(shard_path(shard.file, dataset.folder), shard)
    ]


def _stamp(path: Path, shard: Shard) -> Stamp:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, shard.sha256]


def _compare(shard: Shard, folder: Path, progress: "_Progress") -> Stamp:
    path = shard_path(shard.file, folder)
    stamp = _stamp(path, shard)  # before the bytes are read: a change in between is seen the next time
    if sha256(path, progress.read) != shard.sha256:
        raise UserError(
            f"{path}: not the bytes that {folder / MANIFEST} was written for: it was altered since the build; see "
            f"`python -m distributed.data validate {folder}`, restore it, or build the data again "
            "(data.verify=never trains on it as it is)"
        )
    return stamp


class _Progress:
    """Says how far a comparison of `shards` is."""

    def __init__(self, shards: list[Shard], say: Say) -> None:
        self.shards = shards
        self._total = sum(shard.bytes for shard in shards)
        self._say = say
        self._read = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._next = self._started + _FIRST
        self._told = False

    def read(self, count: int) -> None:
        """Note that so many bytes more were read; called from several threads."""
        with self._lock:
            self._read += count
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _EVERY
            if not self._told:
                self._say(
                    f"comparing {_size(self._total)} in {len(self.shards):,} shard(s) with the hashes of the manifest, "
                    "once after each change"
                )
                self._told = True
            else:
                self._say(f"{_size(self._read)} of {_size(self._total)} compared")

    def done(self) -> None:
        """Say the end of what was begun to be told."""
        if self._told:
            self._say(f"as it was built, {_size(self._total)} compared in {time.monotonic() - self._started:.0f} s")


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


@contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """Keep other processes of this machine from comparing `folder` at the same time, where files can be locked."""
    with (folder / MANIFEST).open("rb") as manifest:
        with suppress(OSError):
            try:
                fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another process compares its shards with their hashes; waiting for it")
                fcntl.flock(manifest, fcntl.LOCK_EX)
        yield
