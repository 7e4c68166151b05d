"""A chain of hashes over what a run was trained on, so that two runs can be seen to have met the same negatives.

Every step extends the chain by its number and its global batch: the keys of the images and the captions drawn for them.
The chain knows neither ranks nor the order of rows in a batch, so any number of workers gives the same, and a run that
was stopped, killed and resumed ends with that of one that nobody disturbed.
"""

import hashlib
from collections.abc import Sequence

LIMBS = 4
_LIMB = 2**32
"""Digests travel as numbers below 2³², whose sums over two million ranks float64 still holds exactly."""


def digest(keys: Sequence[str], captions: Sequence[str]) -> list[int]:
    """Return the part of a batch that one rank has as `LIMBS` numbers to be added over the ranks.

    The hash of a set: rows hashed one by one, and added.

    Args:
        keys: the images' keys, b of them.
        captions: their captions, image-major, the same number for each.
    """
    each = len(captions) // max(1, len(keys))
    total = 0
    for row, key in enumerate(keys):
        words = hashlib.sha256(key.encode())
        for caption in captions[row * each : (row + 1) * each]:
            words.update(b"\0" + caption.encode())
        total += int.from_bytes(words.digest()[: 4 * LIMBS], "little")
    return [total // _LIMB**limb % _LIMB for limb in range(LIMBS)]


def extend(chain: str, step: int, sums: Sequence[float]) -> str:
    """Return `chain`, 32 hexadecimal digits or empty before the first step, extended by a step's summed digests."""
    total = sum(int(value) * _LIMB**limb for limb, value in enumerate(sums)) % _LIMB**LIMBS
    return hashlib.sha256(f"{chain} {step} {total:x}".encode()).hexdigest()[:32]
