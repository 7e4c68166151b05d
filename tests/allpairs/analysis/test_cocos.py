"""Counts over a data set: how its batches are made, and the mean and deviation over them."""

import json
import statistics

import numpy as np
import pytest
import torch

from allpairs.analysis.batches import batches
from allpairs.analysis.cocos import Cocos, Setup, count_over_batches
from allpairs.analysis.contributing import count_contributing
from allpairs.analysis.variants import Variant
from allpairs.errors import UserError
from allpairs.objectives import make


def test_one_pass_sees_each_image_once_with_a_caption_of_its_own(make_embeddings):
    embeddings = make_embeddings(images=50)
    found = list(batches(embeddings, size=16, seed=1))
    assert [len(batch.queries) for batch in found] == [16, 16, 16]  # the last 2 of 50 fill no batch
    seen = torch.cat([batch.query_ids for batch in found]).tolist()
    assert len(set(seen)) == 48
    assert seen != sorted(seen)
    for batch in found:
        assert torch.equal(batch.query_ids, batch.candidate_ids)
        for query, candidate, each in zip(batch.queries, batch.candidates, batch.query_ids.tolist(), strict=True):
            rows = np.flatnonzero(embeddings.caption_ids == each)
            assert any(np.array_equal(embeddings.captions[row], candidate.float().numpy()) for row in rows)
            [row] = np.flatnonzero(embeddings.image_ids == each)
            assert np.array_equal(embeddings.images[row], query.float().numpy())


def test_the_seed_decides_order_and_captions(make_embeddings):
    embeddings = make_embeddings()
    one, same, other = (next(iter(batches(embeddings, size=16, seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(one.candidates, same.candidates)
    assert not torch.equal(one.query_ids, other.query_ids)
    drawn = {
        next(iter(batches(make_embeddings(images=4), size=4, seed=seed))).candidates.sum().item() for seed in range(9)
    }
    assert len(drawn) > 3  # another caption each time, not always the first


def test_captions_of_an_image_are_distinct_and_at_most_as_many_as_asked(make_embeddings):
    embeddings = make_embeddings(images=20, captions=3)
    for asked, expected in ((2, 2), (5, 3)):
        for batch in batches(embeddings, size=10, captions=asked):
            ids, counts = batch.candidate_ids.unique(return_counts=True)
            assert set(ids.tolist()) == set(batch.query_ids.tolist())
            assert counts.tolist() == [expected] * 10
            assert len(batch.candidates.unique(dim=0)) == 10 * expected


@pytest.mark.parametrize("size", [1, 51])
def test_an_impossible_batch_size_is_refused(size, make_embeddings):
    with pytest.raises(UserError, match="accepted: 2 to 50"):
        batches(make_embeddings(), size=size)


def test_mean_and_deviation_are_those_of_the_batches(make_embeddings):
    embeddings = make_embeddings(run="r", split="train", step=3, checkpoint="best")
    cocos = count_over_batches(embeddings, Variant("triplet", {"margin": 0.5}), Setup(batch_size=12, seed=4))
    values = []
    for batch in batches(embeddings, size=12, seed=4):
        q, c = (torch.nn.functional.normalize(rows, dim=1) for rows in (batch.queries, batch.candidates))
        values.append(count_contributing(make("triplet", margin=0.5), q @ c.T)["t2i"]["c_b"])
    assert (cocos.batches, cocos.left_out, cocos.captions) == (4, 2, 1)
    assert cocos.counts["t2i"]["c_b"].mean == pytest.approx(sum(values) / 4)
    assert cocos.counts["t2i"]["c_b"].std == pytest.approx(statistics.pstdev(values))
    assert cocos.counts["t2i"]["c_b"].std > 0
    assert (cocos.run, cocos.split, cocos.step, cocos.objective) == ("r", "train", 3, "triplet(margin=0.5)")


def test_only_sets_see_several_captions(make_embeddings):
    embeddings = make_embeddings(captions=3, captions_per_image=2)
    seen = {
        name: count_over_batches(embeddings, Variant(name), Setup(batch_size=10)).captions
        for name in ("smooth_ap", "circle", "unified")
    }
    assert seen == {"smooth_ap": 5, "circle": 2, "unified": 1}
    cocos = count_over_batches(embeddings, Variant("smooth_ap"), Setup(batch_size=10))
    assert 10 < cocos.counts["t2i"]["c_0"].mean <= 30  # 30 caption anchors to a batch of 10 images


def test_plain_values_come_back(make_embeddings):
    cocos = count_over_batches(make_embeddings(run="r"), Variant("vlc"), Setup(batch_size=10))
    assert Cocos.from_json(json.loads(json.dumps(cocos.to_json()))) == cocos
