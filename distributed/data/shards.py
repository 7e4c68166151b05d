"""Walking a tar shard without decoding or unpacking anything: where each member of each sample lies."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from allpairs.errors import UserError

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
REGION_SUFFIX = "npy"
TEXT_SUFFIX = "txt"
FACTS_SUFFIX = "json"
_BLOCK = 512
_TAIL = 2**20  # read at a time after the end mark, which is mostly followed by 10 KiB at most


@dataclass(frozen=True)
class Span:
    """Where a member's bytes lie in its shard."""

    offset: int
    size: int


@dataclass
class ShardSample:
    """The members of one sample that the readers know; all others are passed over unread."""

    key: str
    image: Span | None = None
    suffix: str = ""
    text: Span | None = None
    facts: Span | None = None
    members: set[str] = field(default_factory=set)


def check_name(path: Path) -> None:
    """Raise UserError when a path has bytes that are not UTF-8: neither Arrow nor a manifest could hold it."""
    if (name := readable(path)) != str(path):
        raise UserError(f"{name}: a name that is not UTF-8; rename it, or the folder it lies in")


class TruncatedShardError(Exception):
    """The tar file ends in the middle: `samples` were whole before it."""

    def __init__(self, file: Path, reason: str) -> None:
        self.reason = f"truncated or damaged tar ({reason})"
        super().__init__(f"{file}: {self.reason}")


def split_name(member: str) -> tuple[str, str]:
    """Split a member's name into key and suffix at the first dot of its last part, as WebDataset does."""
    path = PurePosixPath(member)
    stem, _, suffix = path.name.partition(".")
    return (stem if path.parent == PurePosixPath(".") else f"{path.parent}/{stem}"), suffix.lower()


def walk_shard(file: Path) -> Iterator[ShardSample]:
    """Yield the samples of a shard in order: consecutive members with the same key.

    A repeated suffix starts a new sample, so that a doubled key shows up as two samples. Bytes of a name that are not
    UTF-8 stand as ``\\xe9`` in the key.

    Raises:
        TruncatedShardError: the file ends early, has no end mark or is no plain tar; the samples before are given.
    """
    current: ShardSample | None = None
    for name, span in _members(file):
        key, suffix = split_name(name)
        if current is None or key != current.key or suffix in current.members:
            if current is not None:
                yield current
            current = ShardSample(key)
        current.members.add(suffix)
        if suffix == TEXT_SUFFIX:
            current.text = span
        elif suffix == FACTS_SUFFIX:
            current.facts = span
        elif suffix in (*IMAGE_SUFFIXES, REGION_SUFFIX) and current.image is None:
            current.image, current.suffix = span, suffix
    if current is not None:
        yield current


def _members(file: Path) -> Iterator[tuple[str, Span]]:
    try:
        # "r:" is plain tar only: a compressed shard has no places to read from.
        with tarfile.open(file, "r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= end:
                    raise TruncatedShardError(file, f"impossible size {member.size} at byte {end}")
                if member.isreg() and not member.issparse():
                    yield readable(member.name), Span(member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header; a shard can hold millions
                end = tar.offset
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:  # ValueError: no number where one should be
        raise TruncatedShardError(file, str(error)) from error
    _check_end(file, end)


def readable(name: str | Path) -> str:
    """Return a name with the bytes that are not UTF-8 written as ``\\xe9``: as it stands, no file could hold it."""
    name = str(name)
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_end(file: Path, end: int) -> None:
    """Raise TruncatedShardError unless there are zeros, and nothing else, from byte `end` on.

    tarfile takes garbage, or a block of zeros in the middle, for the end.
    """
    with file.open("rb") as stream:
        stream.seek(end)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            raise TruncatedShardError(file, f"no end-of-archive mark at byte {end}")
        while chunk := stream.read(_TAIL):
            if chunk.count(0) != len(chunk):
                raise TruncatedShardError(file, f"data after the end-of-archive mark at byte {end}")
