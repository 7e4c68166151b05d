"""Seeded splits for sources that come without any."""

import hashlib
from collections.abc import Sequence

import numpy as np

from allpairs.errors import UserError
from distributed.data.draws import Purpose, permutation


def split_by_seed(names: Sequence[str], *, seed: int, val: float, test: float) -> dict[str, list[str]]:
    """Give each of `names` to train, val or test by a seeded hash of the name; the order within a split is kept.

    Args:
        names: what to split, without duplicates.
        seed: another seed is another split.
        val: fraction of the names that is for validation.
        test: fraction for testing; train gets the rest.

    Raises:
        UserError: fractions that leave nothing to train on.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UserError(f"--val {val:g} and --test {test:g}: both at least 0 and together below 1")
    ids = np.array(
        [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names], dtype=np.uint64
    )
    order = permutation(seed, 0, Purpose.SPLIT, ids).tolist()
    tests, vals = round(test * len(names)), round(val * len(names))
    parts = {"train": order[tests + vals :], "val": order[tests : tests + vals], "test": order[:tests]}
    return {split: [names[i] for i in sorted(part)] for split, part in parts.items() if part}
