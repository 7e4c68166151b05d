"""Seeded draws that are pure functions of (seed, epoch, purpose, id): no generator state to save, none to lose.

Every draw is one SplitMix64 hash (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014),
so it does not depend on world size, on the order of asking, or on the version of any random library.
"""

from enum import IntEnum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a draw decides; draws for different purposes are independent."""

    SHARDS = 1
    ROWS = 2
    CAPTIONS = 3
    CROP_SCALE = 4
    CROP_X = 5
    CROP_Y = 6
    FLIP = 7
    SPLIT = 8
    KEYWORDS = 9
    DIVISION = 10
    SHUFFLED_PAIRS = 11
    SHUFFLED_PLACES = 12


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def draw(seed: int, epoch: int, purpose: Purpose, ids: np.ndarray) -> np.ndarray:
    """Return one uint64 per id, uniform over 64 bits; `ids` is any integer array."""
    state = np.zeros(1, dtype=np.uint64)  # arrays, not scalars: uint64 wrap-around is silent for arrays
    for part in (seed, epoch, int(purpose)):
        state = _mix(state ^ np.uint64(part & 0xFFFF_FFFF_FFFF_FFFF))
    return _mix(state ^ np.asarray(ids).astype(np.uint64))


def draw_unit(seed: int, epoch: int, purpose: Purpose, ids: np.ndarray) -> np.ndarray:
    """Return one float64 in [0, 1) per id."""
    return (draw(seed, epoch, purpose, ids) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, purpose: Purpose, ids: np.ndarray) -> np.ndarray:
    """Return the order of `ids` by their draws (ties, one in 2^64, by place): int64 positions into `ids`."""
    return np.argsort(draw(seed, epoch, purpose, ids), kind="stable")


def choose(seed: int, epoch: int, purpose: Purpose, item: int, *, available: int, count: int) -> list[int]:
    """Draw `count` distinct numbers below `available` for sample `item`; when there are fewer, they repeat in turn."""
    order = permutation(seed, epoch, purpose, (item << 16) + np.arange(available))
    return [int(order[i % available]) for i in range(count)]
