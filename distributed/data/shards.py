"""Walking a tar shard without decoding or unpacking anything: where each member of each sample lies."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
REGION_SUFFIX = "npy"
TEXT_SUFFIX = "txt"
_BLOCK = 512


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
    members: set[str] = field(default_factory=set)


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

    A repeated suffix starts a new sample, so that a doubled key shows up as two samples.

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
        elif suffix in (*IMAGE_SUFFIXES, REGION_SUFFIX) and current.image is None:
            current.image, current.suffix = span, suffix
    if current is not None:
        yield current


def _members(file: Path) -> Iterator[tuple[str, Span]]:
    try:
        # "r:" is plain tar only: a compressed shard has no places to read from.
        with tarfile.open(file, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.issparse():
                    yield member.name, Span(member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header; a shard can hold millions
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        raise TruncatedShardError(file, str(error)) from error
    with file.open("rb") as stream:
        stream.seek(end)
        if stream.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes garbage after the first member for the end
            raise TruncatedShardError(file, f"no end-of-archive mark at byte {end}")
