"""Weights as each anchor's own: the factors of the mean are taken out on both sides, also where they differ."""

import pytest
import torch

from allpairs.analysis.weights import views
from allpairs.objectives import make, weights_from_scores


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_both_directions_of_a_batch_with_two_captions_per_image(reduction):
    S = torch.rand(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids, caption_ids = torch.arange(4), torch.arange(4).repeat_interleave(2)
    given = {"query_ids": ids, "candidate_ids": caption_ids}
    summed = make("binomial_deviance", reduction="sum")
    rows, columns = views(make("binomial_deviance", reduction=reduction), S, **given)
    torch.testing.assert_close(rows.weights, weights_from_scores(summed, S, **given, direction="rows"))
    torch.testing.assert_close(columns.weights.T, weights_from_scores(summed, S, **given, direction="columns"))
    assert (rows.direction, columns.direction) == ("i2t", "t2i")
    assert torch.equal(rows.scores, columns.scores.T)
    for view in (rows, columns):
        assert torch.equal(view.positive, ~view.negative)
        assert view.positive.sum() == 8


def test_one_side_of_ids_stands_for_both():
    S, ids = torch.rand(4, 4, dtype=torch.float64), torch.tensor([1, 1, 2, 3])
    for given in ({"query_ids": ids}, {"candidate_ids": ids}):
        for view in views(make("triplet"), S, **given):
            assert torch.equal(view.positive, torch.eye(4, dtype=torch.bool))
            assert torch.equal(view.negative, ids[:, None] != ids)
