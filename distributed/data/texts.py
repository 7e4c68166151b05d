"""The same caption under several images of a split: as negatives of each other they are false ones.

Captions are the same text when they are equal after Unicode's composition (NFC) and with every run of white space as
one space; case and punctuation count. They are compared by a hash of 64 bits: two different ones of a batch of a
million captions meet by chance once in 37 million batches.
"""

import hashlib
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from distributed.data.pictures import SHOWN


def text_id(caption: str) -> int:
    """Return the number of a text, a signed one of 64 bits, the same in every process."""
    text = unicodedata.normalize("NFC", " ".join(caption.split()))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big", signed=True)


def text_ids(captions: Iterable[str]) -> np.ndarray:
    """Return the `text_id` of each of `captions`, int64."""
    return np.fromiter(map(text_id, captions), np.int64)


class SharedTexts(NamedTuple):
    """How many texts stand under more than one image, and under how many images one of them stands."""

    texts: int
    images: int

    def metrics(self, split: str) -> dict[str, float]:
        """Return both as metrics of a run's summary, ``train/shared_captions/texts`` and ``…/images``."""
        return {f"{split}/{_SHARED}/{name}": count for name, count in self._asdict().items()}


_SHARED = "shared_captions"


def describe_shared(metrics: Mapping[str, float], split: str) -> str:
    """Return ``"266 texts of train, each of several images: 490 in all"``, of what `metrics` hold; nothing for none."""
    texts, images = (int(metrics.get(f"{split}/{_SHARED}/{name}", 0)) for name in SharedTexts._fields)
    return f"{texts:,} texts of {split}, each of several images: {images:,} in all" if texts else ""


@dataclass
class SplitTexts:
    """The captions of a split, image by image, as numbers: 16 bytes each."""

    split: str
    images: int = 0
    _texts: array = field(default_factory=lambda: array("q"))
    _rows: array = field(default_factory=lambda: array("q"))

    def add(self, captions: Sequence[str]) -> None:
        """Note the captions of the next image."""
        texts = {text_id(caption) for caption in captions}  # twice under one image is no matter
        self._texts.extend(texts)
        self._rows.extend([self.images] * len(texts))
        self.images += 1

    def shared(self) -> SharedTexts:
        """Count the texts that several images have, and these images."""
        texts, rows = self._of_several()
        return SharedTexts(len(np.unique(texts)), len(np.unique(rows)))

    def note(self, key: Callable[[int], str]) -> str | None:
        """Say what is shared, images by their `key`; None for nothing."""
        texts, rows = self._of_several()
        if not len(texts):
            return None
        first = np.flatnonzero(np.append(True, texts[1:] != texts[:-1]))
        named = ", ".join(f"{key(int(rows[place]))} = {key(int(rows[place + 1]))}" for place in first[:SHOWN])
        more = ", …" if len(first) > SHOWN else ""
        return (
            f"{len(first):,} texts of {self.split} are captions of several images each, of {len(np.unique(rows)):,} in "
            f"all ({named}{more}): data.equal_captions=masked does not count them as wrong in training"
        )

    def _of_several(self) -> tuple[np.ndarray, np.ndarray]:
        """Return text and row of every caption whose text several images have, texts by their first image."""
        texts, rows = np.array(self._texts, np.int64), np.array(self._rows, np.int64)
        _, first, group, count = np.unique(texts, return_index=True, return_inverse=True, return_counts=True)
        kept = np.flatnonzero(count[group] > 1)
        kept = kept[np.lexsort((rows[kept], first[group[kept]]))]
        return texts[kept], rows[kept]
