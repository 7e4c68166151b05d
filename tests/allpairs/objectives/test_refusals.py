"""What a library call refuses, in one line that names the argument: every objective, every way to call one."""

import re

import numpy as np
import pytest
import torch

from allpairs.engine import similarity_statistics
from allpairs.errors import UserError
from allpairs.objectives import from_scores, make, names, weights_from_scores
from tests.allpairs.objectives import cases

B, D = 4, 8
QUERIES, CANDIDATES = torch.randn(2, B, D, generator=torch.Generator().manual_seed(0)).unbind()
SCORES = QUERIES @ CANDIDATES.T
IDS = torch.arange(B)
NAMES = ["a dog", "a cat", "a cow", "a hen"]


def of_embeddings(objective, queries=QUERIES, candidates=CANDIDATES, **given):
    return objective(queries, candidates, **given)


def tiled(objective, queries=QUERIES, candidates=CANDIDATES, **given):
    return objective(queries, candidates, **given, backend="tiled", tile=3)


def pair_weights(objective, queries=QUERIES, candidates=CANDIDATES, **given):
    return objective.pair_weights(queries, candidates, **given)


def statistics(objective, queries=QUERIES, candidates=CANDIDATES, **given):
    return similarity_statistics(queries, candidates, **given)


def on_scores(objective, scores=SCORES, **given):
    return from_scores(objective, scores, **given)


def weights_on_scores(objective, scores=SCORES, **given):
    return weights_from_scores(objective, scores, **given)


CALLS = [of_embeddings, tiled, pair_weights, statistics]
SCORED = [on_scores, weights_on_scores]

LIST = QUERIES.tolist()
OF_EMBEDDINGS = [
    (
        {"queries": LIST},
        "queries: a tensor of embeddings [B, D] is accepted, not list; torch.tensor(queries) makes one",
    ),
    (
        {"queries": tuple(map(tuple, LIST))},
        "queries: a tensor of embeddings [B, D] is accepted, not tuple; torch.tensor(",
    ),
    ({"queries": list(QUERIES)}, "not list; torch.stack(queries) makes one of it"),
    (
        {"queries": QUERIES.numpy(), "candidates": CANDIDATES.numpy()},
        "not ndarray; torch.from_numpy(queries) makes one",
    ),
    ({"candidates": CANDIDATES.numpy()}, "candidates: a tensor of embeddings [B, D] is accepted, not ndarray; "),
    ({"queries": None}, "queries: a tensor of embeddings [B, D] is accepted, not NoneType"),
    (
        {"queries": QUERIES.long()},
        "queries: floating-point embeddings [B, D] are accepted, not int64 [4, 8]; queries.fl",
    ),
    (
        {"candidates": CANDIDATES > 0},
        "candidates: floating-point embeddings [B, D] are accepted, not bool [4, 8]; cand",
    ),
    ({"queries": QUERIES[0]}, "queries: floating-point embeddings [B, D] are accepted, not float32 [8]"),
    ({"candidates": CANDIDATES[:, :5]}, "queries [4, 8] and candidates [4, 5]: both need the same embedding size"),
    ({"queries": QUERIES[:0], "candidates": CANDIDATES[:0]}, "queries: at least one row is needed, none was given"),
]
OF_SCORES = [
    (
        {"scores": SCORES.tolist()},
        "scores: a tensor of one score per pair, [Bq, Bc], is accepted, not list; torch.tensor",
    ),
    ({"scores": SCORES.numpy()}, "is accepted, not ndarray; torch.from_numpy(scores) makes one of it"),
    ({"scores": SCORES.long()}, "not [4, 4] of torch.int64; scores.float()"),
    ({"scores": SCORES[0]}, "scores: a floating-point matrix [B, B] of at least one pair is accepted, not [4]"),
]
OF_IDS = [
    (
        {"query_ids": IDS.tolist()},
        "query_ids: a tensor of one integer per row, [4], is accepted, not list; torch.tensor(",
    ),
    (
        {"query_ids": IDS.numpy()},
        "query_ids: a tensor of one integer per row, [4], is accepted, not ndarray; torch.from",
    ),
    ({"query_ids": NAMES}, "not list; number the names first: equal names, equal integers"),
    ({"candidate_ids": tuple(range(B))}, "candidate_ids: a tensor of one integer per row, [4], is accepted, not tuple"),
    ({"query_ids": 3}, "query_ids: a tensor of one integer per row, [4], is accepted, not int"),
    ({"query_ids": IDS.float()}, "query_ids: one integer per row, [4], is accepted, not float32 [4]; query_ids.long()"),
    ({"query_ids": IDS[:3]}, "query_ids: one integer per row, [4], is accepted, not int64 [3]"),
    ({"query_ids": IDS[:, None]}, "query_ids: one integer per row, [4], is accepted, not int64 [4, 1]"),
    ({"query_ids": IDS > 1}, "query_ids: one integer per row, [4], is accepted, not bool [4]"),
    ({"text_ids": NAMES}, "text_ids: a tensor of one integer per row, [4], is accepted, not list; number the names"),
    ({"text_ids": IDS[:3]}, "text_ids: one integer per row, [4], is accepted, not int64 [3]"),
]
OF_MARGINS = [
    (
        {"margins": [0.1] * B},
        "margins: a tensor of one number per pair, [4], is accepted, not list; torch.tensor(margins)",
    ),
    ({"margins": np.full(B, 0.1)}, "not ndarray; torch.from_numpy(margins)"),
    ({"margins": 0.2}, "margins: a tensor of one number per pair, [4], is accepted, not float"),
    ({"margins": torch.ones(B, dtype=torch.int64)}, "is accepted, not int64 [4]; margins.float()"),
]


def refused(said, call, objective, **given):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        call(objective, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", names())
def test_what_is_no_batch(name):
    objective = make(name)
    for calls, table in ((CALLS, OF_EMBEDDINGS + OF_IDS), (SCORED, OF_SCORES + OF_IDS)):
        for call in calls:
            for given, said in table:
                refused(said, call, objective, **given)


@pytest.mark.parametrize("name", cases.WITH_MARGIN)
def test_what_are_no_margins(name):
    for call in (of_embeddings, tiled, pair_weights, *SCORED):
        for given, said in OF_MARGINS:
            refused(said, call, make(name), **given)


@pytest.mark.parametrize("name", names())
def test_embeddings_on_two_devices(name):
    """Meta stands for another device; where it comes first, its embeddings are refused for having no numbers."""
    for call in (of_embeddings, pair_weights):
        refused("of the device meta", call, make(name), queries=QUERIES.to("meta"))
        refused("of the device meta", call, make(name), candidates=CANDIDATES.to("meta"))


@pytest.mark.parametrize("name", names())
def test_a_batch_without_a_negative_is_refused_or_teaches_something(name):
    """Of one id for all, by default arguments: whoever accepts it has a gradient."""
    objective = make(name)
    ids = torch.full((B,), 7)
    for given in ({"query_ids": ids}, {"query_ids": ids, "candidate_ids": ids.clone()}):
        for call in (of_embeddings, tiled, pair_weights, *SCORED):
            if objective.needs_negatives:
                refused(
                    "query_ids: all ids of the batch are 7, so that no pair is a negative", call, objective, **given
                )
            else:
                call(objective, **given)
    if not objective.needs_negatives:
        queries = QUERIES.clone().requires_grad_()
        objective(queries, CANDIDATES, query_ids=ids).backward()
        assert queries.grad.abs().max() > 1e-4
    # One pair has no negative either, with or without an id: the last batch of an epoch, whose loss is as it was.
    one = {"queries": QUERIES[:1], "candidates": CANDIDATES[:1]}
    assert of_embeddings(objective, **one, query_ids=ids[:1]) == of_embeddings(objective, **one)
    # Two ids are enough, and ids beyond those of the batch's first row.
    assert of_embeddings(objective, query_ids=torch.tensor([7, 7, 7, 8])).isfinite()


@pytest.mark.parametrize("name", cases.SETS)
def test_one_id_on_one_side_leaves_negatives(name):
    ids = torch.full((B,), 7)
    assert of_embeddings(make(name), query_ids=ids, candidate_ids=torch.tensor([7, 7, 7, 8])).isfinite()
    assert of_embeddings(make(name), query_ids=ids, candidate_ids=ids + 1).isfinite()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_beside_full_precision_is_compared_in_full(name, half):
    """Accepted: one tower may end in a norm, which autocast leaves in float32, and the other in a product."""
    objective = make(name)
    for full in (torch.float32, torch.float64):
        given = QUERIES.to(half).requires_grad_(), CANDIDATES.to(full, copy=True).requires_grad_()
        raised = [side.detach().to(full, copy=True).requires_grad_() for side in given]
        results = []
        for sides in (given, raised):
            loss = objective(*sides, query_ids=torch.tensor([0, 1, 2, 2]))
            loss.backward()
            results.append((loss.detach(), sides[1].grad))
        assert results[0][0].dtype == full
        torch.testing.assert_close(results[0], results[1])
        assert given[0].grad.dtype == half
        torch.testing.assert_close(given[0].grad.to(full), raised[0].grad, rtol=2**-7, atol=1e-4)
