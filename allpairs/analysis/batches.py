"""Batches as training makes them, drawn from embeddings: random images, captions drawn among each image's own.

Shapes: b images of a batch, kb captions of them, D embedding.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError


class EmbeddingBatch(NamedTuple):
    """A batch in float64, where differences of nearly equal similarities are still exact."""

    queries: Tensor
    """[b, D]."""
    candidates: Tensor
    """[kb, D], captions of the first query first; with one caption per image row i matches row i."""
    query_ids: Tensor
    """[b] int64."""
    candidate_ids: Tensor
    """[kb] int64."""

    def scores(self, *, unit: bool = True) -> Tensor:
        """Return S [b, kb]: cosines, or plain products for an objective that does not normalise."""
        if not unit:
            return self.queries @ self.candidates.T
        return normalize(self.queries, dim=1) @ normalize(self.candidates, dim=1).T


def batches(embeddings: EmbeddingSet, *, size: int = 128, captions: int = 1, seed: int = 0) -> Iterator[EmbeddingBatch]:
    """Yield one pass over all images in batches of `size`, in an order and with captions that `seed` decides.

    Each image comes with `captions` of its captions, distinct, or with all where it has fewer. Images that fill no
    whole batch at the end are left out: counts per batch compare only between batches of one size.

    Source: the setup of C §5 (COCOS), random batches of 128 over the whole training set.

    Raises:
        UserError: a batch that is larger than the data, or smaller than two.
    """
    total = len(embeddings.images)
    if not 2 <= size <= total:
        raise UserError(f"batch size {size} is impossible; accepted: 2 to {total}, the number of queries")
    if captions < 1:
        raise UserError(f"captions={captions} is impossible; accepted: a whole number from 1")
    return _batches(embeddings, size, captions, np.random.default_rng(seed))


def _batches(
    embeddings: EmbeddingSet, size: int, captions: int, draws: np.random.Generator
) -> Iterator[EmbeddingBatch]:
    total = len(embeddings.images)
    by_id = np.argsort(embeddings.caption_ids, kind="stable")
    sorted_ids = embeddings.caption_ids[by_id]
    first = np.searchsorted(sorted_ids, embeddings.image_ids)
    last = np.searchsorted(sorted_ids, embeddings.image_ids, side="right")
    order = draws.permutation(total)
    for start in range(0, total - size + 1, size):
        images = order[start : start + size]
        drawn = []
        for image in images:
            own = by_id[first[image] : last[image]]
            drawn.append(draws.choice(own, size=min(captions, len(own)), replace=False))
        texts = np.concatenate(drawn)
        yield EmbeddingBatch(
            torch.from_numpy(embeddings.images[images]).double(),
            torch.from_numpy(embeddings.captions[texts]).double(),
            torch.from_numpy(embeddings.image_ids[images]),
            torch.from_numpy(embeddings.caption_ids[texts]),
        )
