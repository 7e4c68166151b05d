"""How each kernel over blocks of scores is launched: a table, and the one way to try something else.

Chosen from what the compiler reports (`python -m benchmarks.resources`), not from timings: nothing spills.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """How a kernel over blocks of scores is launched."""

    rows: int
    """Of a block."""
    columns: int
    depth: int
    """Step along D."""
    warps: int
    stages: int
    """Blocks of operands in flight."""
    group: int = 8
    """Lines of blocks that are computed together, for L2."""

    def blocks(self, scores: tuple[int, int]) -> tuple[int, int]:
        """Return how many blocks cover R rows and C columns."""
        return -(-scores[0] // self.rows), -(-scores[1] // self.columns)


INTERPRETED = Launch(16, 16, 16, warps=4, stages=1)
"""In Triton's interpreter: small, so that edges abound."""

_FLOAT32 = Launch(64, 64, 16, warps=4, stages=3)
_BEFORE_HOPPER = Launch(128, 128, 32, warps=8, stages=3)
"""Half precision there is neither pipelined nor tuned."""

TABLE = {
    # 256 × 128 needs half the shuffles of 128 × 256 to reduce its columns and loads as much; four stages take 192 of
    # 227 KiB.
    "soft_excess": Launch(256, 128, 64, warps=8, stages=4),
    "hardest": Launch(256, 128, 64, warps=8, stages=4),
    # Reduces nothing: wide lines of W are stored faster, and fewer registers hold a line's shifts.
    "soft_weights": Launch(128, 256, 64, warps=8, stages=4),
    # Cost and slope of every pair are held at once: half of the pairs, or they would spill.
    "sigmoid_sums": Launch(128, 128, 64, warps=8, stages=4),
    "sigmoid_weights": Launch(128, 128, 64, warps=8, stages=4),
}
"""On Hopper, in half precision."""

_instead: dict[str, Launch] = {}
"""What `launching` has put in the table's place; of the whole process, since backward runs in a thread of autograd."""


def launch_on(major: int, dtype: torch.dtype, kernel: str) -> Launch:
    """Return the launch of `kernel` for embeddings of `dtype` on a GPU of compute capability `major`."""
    if kernel in _instead:
        return _instead[kernel]
    if dtype == torch.float32:
        return _FLOAT32
    return TABLE[kernel] if major in (9, 10) else _BEFORE_HOPPER


@contextmanager
def launching(**launches: Launch) -> Iterator[None]:
    """Launch the kernels named so, on every device and for every type, until the context is left."""
    assert launches.keys() <= TABLE.keys()
    before = dict(_instead)
    _instead.update(launches)
    try:
        yield
    finally:
        _instead.clear()
        _instead.update(before)
