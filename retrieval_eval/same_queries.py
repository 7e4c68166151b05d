"""Whether embeddings of several runs are of the same images and captions, so that they can be joined or compared."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from allpairs.errors import UserError
from retrieval_eval.embeddings import EmbeddingSet

PARTS = {"image_ids": "image ids", "caption_ids": "caption ids", "image_keys": "image keys", "texts": "captions"}


def check_same_queries(sets: Sequence[EmbeddingSet], names: Sequence[str]) -> None:
    """Raise UserError, with the first row that differs, unless all `sets` have equal ids, keys and texts in order."""
    for other, name in zip(sets[1:], names[1:], strict=True):
        for part, said in PARTS.items():
            ours, theirs = getattr(sets[0], part), getattr(other, part)
            if len(ours) != len(theirs):
                raise UserError(
                    f"{names[0]} and {name} are not of the same queries: {len(ours):,} and {len(theirs):,} {said}"
                    "; accepted: embeddings of one split"
                )
            row = _first_difference(ours, theirs)
            if row is not None:
                raise UserError(
                    f"{names[0]} and {name} are not of the same queries: the {said} differ first in row {row}"
                    f" ({_shown(ours[row])} and {_shown(theirs[row])}); accepted: embeddings of one split"
                )


def _first_difference(ours: Sequence[Any] | np.ndarray, theirs: Sequence[Any] | np.ndarray) -> int | None:
    if isinstance(ours, np.ndarray):
        rows = np.flatnonzero(ours != theirs)
        return int(rows[0]) if len(rows) else None
    return next((row for row, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)


def _shown(value: Any) -> str:
    text = str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
