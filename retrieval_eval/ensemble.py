"""Runs joined: whether they are of the same images and captions, and the mean of their score matrices as one set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval.inputs import as_tensor, normalised


def ensemble(sets: Sequence[EmbeddingSet], names: Sequence[str], *, cosine: bool = False) -> EmbeddingSet:
    """Return embeddings whose dot products are the mean of those of `sets`; UserError if their queries differ.

    For n runs with embeddings q_r and g_r, of any widths, ::

        [q_1; ...; q_n]/sqrt(n) . [g_1; ...; g_n]/sqrt(n)  =  (q_1.g_1 + ... + q_n.g_n)/n

    so that everything that works on embeddings works on the ensemble, exactly and without a matrix of scores. (Of unit
    vectors these are unit vectors again. Embeddings that are not normalised weigh a run by their lengths; with `cosine`
    those of each of several runs are normalised first.) The joined embeddings are held in memory, also where the runs'
    own are files.
    """
    check_same_queries(sets, names)
    if len(sets) == 1:
        return sets[0]
    scale = np.float32(1 / np.sqrt(len(sets)))

    def joined(side: Sequence[np.ndarray]) -> np.ndarray:
        rows = [normalised(as_tensor(one)).numpy() for one in side] if cosine else side
        return np.concatenate(rows, axis=1) * scale

    return replace(
        sets[0], images=joined([one.images for one in sets]), captions=joined([one.captions for one in sets])
    )


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
