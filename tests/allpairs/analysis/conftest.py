"""Embeddings that stand for a small model's."""

import numpy as np
import pytest

from allpairs.analysis import Embeddings, Origin


@pytest.fixture
def make_embeddings():
    """Make embeddings of images with three captions each; `Origin` fields as keywords."""

    def make(images: int = 50, captions: int = 3, dim: int = 16, seed: int = 0, noise: float = 0.7, **origin):
        draws = np.random.default_rng(seed)
        ids = 100 + draws.permutation(images)
        caption_ids = draws.permutation(np.repeat(ids, captions))
        queries = draws.normal(size=(images, dim))
        by_id = dict(zip(ids.tolist(), queries, strict=True))
        candidates = np.stack([by_id[i] for i in caption_ids.tolist()]) + noise * draws.normal(
            size=(len(caption_ids), dim)
        )
        return Embeddings(
            queries.astype(np.float32),
            candidates.astype(np.float32),
            ids.astype(np.int64),
            caption_ids.astype(np.int64),
            Origin(**origin),
        )

    return make
