"""Embeddings that stand for a small model's."""

import numpy as np
import pytest

from allpairs.embeddings import EmbeddingSet, Origin


@pytest.fixture
def make_embeddings():
    """Make embeddings of images with three captions each; `Origin` fields as keywords."""

    def make(*, images: int = 50, captions: int = 3, dim: int = 16, noise: float = 0.7, split: str = "test", **origin):
        draws = np.random.default_rng(0)
        ids = 100 + draws.permutation(images)
        caption_ids = draws.permutation(np.repeat(ids, captions))
        queries = draws.normal(size=(images, dim))
        by_id = dict(zip(ids.tolist(), queries, strict=True))
        candidates = np.stack([by_id[i] for i in caption_ids.tolist()]) + noise * draws.normal(
            size=(len(caption_ids), dim)
        )
        return EmbeddingSet(
            images=queries,
            captions=candidates,
            image_ids=ids,
            caption_ids=caption_ids,
            image_keys=[f"image {i}" for i in ids],
            texts=[f"caption {row} of {i}" for row, i in enumerate(caption_ids)],
            split=split,
            origin=Origin(**origin),
        )

    return make
