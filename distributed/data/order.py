"""The global order of an epoch and how batches and ranks cut it: pure functions of (seed, epoch) and the shard sizes.

Shards are permuted; the samples in that order are then shuffled inside windows of `window` samples, so that reads stay
within a few shards at a time however large the data is. Memory is one window, whatever the number of samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allpairs.errors import UserError
from distributed.data.draws import Purpose, permutation

# A tail below an eighth of a batch joins the batch before it: it would be a step with hardly any negatives. As a share
# of the batch, not of the world, it keeps the global batches the same at every world size down to 16 rows per rank.
TAIL_SHARE = 8


class EpochOrder:
    """Rows of the data set in the order of one epoch.

    Args:
        shard_samples: number of samples in each shard, in manifest order.
        seed: decides the order together with `epoch`.
        epoch: the epoch.
        window: shuffle within this many consecutive samples (at least 1).
    """

    def __init__(self, shard_samples: Sequence[int], *, seed: int, epoch: int, window: int) -> None:
        sizes = np.asarray(shard_samples, dtype=np.int64)
        shards = permutation(seed, epoch, Purpose.SHARDS, np.arange(len(sizes)))
        self._first_row = (np.cumsum(sizes) - sizes)[shards]  # row where each visited shard starts in the manifest
        self._visited = np.concatenate([[0], np.cumsum(sizes[shards])])  # place where each visited shard starts
        self._seed, self._epoch, self._window = seed, epoch, window
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self.samples = int(sizes.sum())

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows at places ``start … stop-1`` of the order: int64 ``[stop - start]``."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            number = start // self._window
            first = number * self._window
            end = min(stop, first + self._window)
            parts.append(self._window_rows(number)[start - first : end - first])
            start = end
        return np.concatenate(parts)

    def _window_rows(self, number: int) -> np.ndarray:
        if self._cached[0] != number:
            places = np.arange(number * self._window, min(self.samples, (number + 1) * self._window))
            visit = np.searchsorted(self._visited, places, side="right") - 1
            rows = self._first_row[visit] + places - self._visited[visit]
            self._cached = (number, rows[permutation(self._seed, self._epoch, Purpose.ROWS, rows)])
        return self._cached[1]


def batch_sizes(remaining: int, global_batch: int, *, world: int, min_rows: int) -> list[int]:
    """Cut the `remaining` samples of an epoch into global batches; every rank sees the same list.

    All have `global_batch` samples but the last: the tail is a smaller batch of its own, or joins the batch before it
    when it is under an eighth of a batch or would leave a rank fewer than `min_rows` rows.

    Raises:
        UserError: even one batch of everything that remains leaves some rank fewer than `min_rows` rows.
    """
    if min(remaining, global_batch) < world * min_rows:
        raise UserError(
            f"{remaining} samples in batches of {global_batch} cannot give each of {world} ranks {min_rows} rows: "
            f"use fewer workers, a global batch of at least {world * min_rows}, or more data"
        )
    full, tail = divmod(remaining, global_batch)
    sizes = [global_batch] * full
    if sizes and (tail * TAIL_SHARE < global_batch or tail < world * min_rows):
        sizes[-1] += tail
    else:
        sizes.append(tail)
    return sizes


def rank_slice(rows: int, *, rank: int, world: int) -> slice:
    """Return the even, contiguous slice of `rows` that is `rank`'s; sizes differ by at most one."""
    base, extra = divmod(rows, world)
    start = rank * base + min(rank, extra)
    return slice(start, start + base + (rank < extra))


@dataclass(frozen=True)
class Position:
    """The next sample to read is number `sample` of epoch `epoch`'s order, which `seed` alone determines.

    It counts samples of the *global* order, so the same position resumes exactly at any world size.
    """

    seed: int
    epoch: int = 0
    sample: int = 0
