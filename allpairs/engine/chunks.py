"""Which candidates are worked on together: the columns of a tile, and the chunks whose gradients travel together.

A chunk takes as many rows of every rank's part, so that one reduce-scatter of equal pieces brings each owner its own.
Its tiles may therefore look at columns from several places of the batch.

Shapes: N ranks, B rows of all ranks, C columns of a tile.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from allpairs.engine.rows import Rows

LEAST_COLUMNS = 16_384
"""What a chunk holds at least, of as many: 50 MB of float32 gradients at D = 768, enough for links to be busy with."""


def both(one: range, other: range) -> range:
    """Return what two ranges share."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def inside(part: range, whole: range) -> slice:
    """Return where `part` is among the items of `whole`."""
    return slice(part.start - whole.start, part.stop - whole.start)


@dataclass(frozen=True)
class Columns:
    """Columns of one tile, by ascending global index."""

    ranges: tuple[range, ...]
    place: int = 0
    """Where the first of them lies among all rows of the chunk; the others follow it."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.ranges)

    def of(self, values_B: Tensor | Rows) -> Tensor:
        """Return what belongs to these columns [C, …] of what belongs to all; of one range without a copy."""
        parts = [values_B[part.start : part.stop] for part in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def split(self, values: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """Return what belongs to each of the ranges of C values along `dim`, as views."""
        return values.split([len(part) for part in self.ranges], dim)


@dataclass(frozen=True)
class Chunk:
    """Some rows of every rank."""

    pieces: tuple[range, ...]
    """Each rank's, global and rank 0 first; the last ones of a short rank are shorter, or empty."""
    length: int
    """The rows each rank has room for: as many as the longest piece."""

    def columns(self, tile: int) -> Iterator[Columns]:
        """Yield the columns of tiles of at most `tile`."""
        ranges: list[range] = []
        place = count = 0
        for rank, piece in enumerate(self.pieces):
            start = piece.start
            while start < piece.stop:
                here = rank * self.length + start - piece.start
                if count == tile or here != place + count:  # full, or a shorter piece has left a gap
                    if ranges:
                        yield Columns(tuple(ranges), place)
                    ranges, place, count = [], here, 0
                part = range(start, min(piece.stop, start + tile - count))
                if ranges and ranges[-1].stop == start:
                    ranges[-1] = range(ranges[-1].start, part.stop)
                else:
                    ranges.append(part)
                count += len(part)
                start = part.stop
        yield Columns(tuple(ranges), place)


def chunks(counts: Sequence[int]) -> list[Chunk]:
    """Return all rows of ranks with so many, in chunks of half the longest part, or of `LEAST_COLUMNS` if that is more.

    Half, because there are two at a time: one at work and one on its way. Of one rank nothing travels: all at once.
    """
    longest = max(counts)
    number = math.ceil(len(counts) * longest / max(LEAST_COLUMNS, longest / 2)) if len(counts) > 1 else 1
    length = math.ceil(longest / number)
    starts = [0, *accumulate(counts)]

    def chunk(first: int) -> Chunk:
        pieces = (
            range(start + min(first, count), start + min(first + length, count))
            for start, count in zip(starts, counts, strict=False)
        )
        return Chunk(tuple(pieces), min(length, longest - first))

    return [chunk(first) for first in range(0, longest, length)]
