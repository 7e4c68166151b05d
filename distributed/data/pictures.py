"""The same picture twice, in one split or in two, known by a fingerprint of its bytes; and captions without a word.

A picture that was encoded again has other bytes and is another picture here.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

NO_PICTURE = 0
SHOWN = 5
"""Examples that a message names."""


def fingerprint(data: bytes) -> int:
    """Return 64 bits of a picture's bytes; two of ten million pictures share them by chance once in 300,000 times."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split: `fingerprints` uint64 by row (0: none), and the `key` of a row for messages."""

    split: str
    fingerprints: np.ndarray
    key: Callable[[int], str]


def repeated(pictures: Pictures) -> str | None:
    """Say which pictures of a split stand in it more than once; None when none does."""
    prints = pictures.fingerprints
    _, first, group = np.unique(prints, return_index=True, return_inverse=True)
    earlier = first[group]
    again = np.flatnonzero((earlier != np.arange(len(prints))) & (prints != NO_PICTURE))
    if not len(again):
        return None
    pairs = _named([(pictures.key(earlier[row]), pictures.key(row)) for row in again[:SHOWN]], len(again))
    return (
        f"{len(again):,} of {len(prints):,} pictures of {pictures.split} repeat an earlier one ({pairs}): the captions "
        "of the one are right for the other, and count as wrong"
    )


def shared(parts: Sequence[Pictures]) -> list[str]:
    """Say, for every two of these splits, which pictures stand in both."""
    return [line for a, b in combinations(parts, 2) if (line := _shared(a, b))]


def _shared(a: Pictures, b: Pictures) -> str | None:
    rows = np.flatnonzero(np.isin(b.fingerprints, a.fingerprints) & (b.fingerprints != NO_PICTURE))
    if not len(rows):
        return None
    pairs = [(a.key(int(np.flatnonzero(a.fingerprints == b.fingerprints[row])[0])), b.key(row)) for row in rows[:SHOWN]]
    return (
        f"{len(rows):,} of {len(b.fingerprints):,} pictures of {b.split} are in {a.split} too "
        f"({_named(pairs, len(rows))}): what is measured on {b.split} is not of pictures never seen"
    )


def _named(pairs: list[tuple[str, str]], count: int) -> str:
    return ", ".join(f"{a} = {b}" for a, b in pairs) + (", …" if count > len(pairs) else "")


_WORD = re.compile(r"[^\W_]")


def has_word(caption: str) -> bool:
    """Return whether a caption has a letter or a digit of any script, or a pictograph: an emoji says something.

    Punctuation, marks, currency and mathematical signs, and the character for what could not be decoded do not.
    """
    return bool(_WORD.search(caption)) or any(
        unicodedata.category(character) == "So" and character not in "\ufffc\ufffd" for character in caption
    )


@dataclass
class Wordless:
    """Counts the captions of a split that have no word."""

    split: str
    captions: int = 0
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, key: str, captions: Sequence[str]) -> None:
        """Note the captions of one sample."""
        self.captions += len(captions)
        for caption in captions:
            if not has_word(caption):
                self.count += 1
                if len(self.examples) < SHOWN:
                    self.examples.append(f"{key}: {caption[:40]!r}")

    def note(self) -> str | None:
        """Say what was found; None for nothing."""
        if not self.count:
            return None
        more = ", …" if self.count > len(self.examples) else ""
        return (
            f"{self.count:,} of {self.captions:,} captions of {self.split} have no word, only punctuation "
            f"({', '.join(self.examples)}{more})"
        )
