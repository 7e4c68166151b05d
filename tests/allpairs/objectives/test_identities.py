"""How the objectives are members of one family (U-Eq. 6 and 7), and what numbers they must survive."""

import itertools
import math

import pytest
import torch

from allpairs.engine import dense
from allpairs.objectives import from_scores, make

EXTREME = [
    ("triplet", {"margin": 2.0}),
    ("triplet_hn", {"margin": 2.0}),
    ("unified", {"margin": 2.0, "scale": 1000.0}),
    ("vlc", {"scale": 1000.0}),
]
EXTREME_AND_LEARNED = [*EXTREME, ("vlc", {"scale": 100.0, "learn_scale": True})]


def random_scores(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(count, count, dtype=torch.float64).uniform_(-1, 1, generator=generator).requires_grad_()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [0.1, 1 / 0.07, 60.0, 1000.0])
def test_vlc_is_scale_times_unified_without_margin(scale, reduction):
    S = random_scores(9)
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 8])
    vlc = from_scores(make("vlc", scale=scale, reduction=reduction), S, query_ids=ids)
    unified = from_scores(make("unified", margin=0, scale=scale, reduction=reduction), S, query_ids=ids)
    torch.testing.assert_close(vlc, scale * unified, rtol=1e-14, atol=0)
    one, other = torch.autograd.grad(vlc, S)[0], scale * torch.autograd.grad(unified, S)[0]
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("scale", [10.0, 100.0, 1e4, 1e6, 1e8])
def test_unified_tends_to_the_hardest_negative(scale):
    count = 9
    S = random_scores(count)
    unified = from_scores(make("unified", margin=0.2, scale=scale, reduction="sum"), S)
    hardest = from_scores(make("triplet_hn", margin=0.2, reduction="sum"), S)
    assert 0 <= (unified - hardest).item() <= 2 * count * math.log(count) / scale
    if scale >= 1e6:
        one, other = torch.autograd.grad(unified, S)[0], torch.autograd.grad(hardest, S)[0]
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_vlc_is_the_cross_entropy_of_both_directions():
    S = random_scores(9)
    logits, target = 14.0 * S, torch.arange(9)
    expected = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    torch.testing.assert_close(from_scores(make("vlc", scale=14.0), S), expected, rtol=1e-13, atol=0)


def test_a_small_loss_keeps_its_precision():
    # log(1 + e^−30) per anchor: a plain logarithm of the sum would be 0 in float32.
    S = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = from_scores(make("vlc", scale=30.0), S)
    assert loss.item() == pytest.approx(2 * math.log1p(math.exp(-30.0)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constants", list(itertools.product([-2.0, 0.0, 2.0], repeat=2)), ids=str)
@pytest.mark.parametrize("ids", [None, [0, 0, 1, 2], [7, 7, 7, 7]])
@pytest.mark.parametrize(("name", "arguments"), EXTREME)
def test_extreme_scores_stay_finite(name, arguments, ids, constants, dtype):
    positive, negative = constants
    S = torch.full((4, 4), negative, dtype=dtype).fill_diagonal_(positive).requires_grad_()
    query_ids = None if ids is None else torch.tensor(ids)
    objective = make(name, **arguments)
    loss = from_scores(objective, S, query_ids=query_ids)
    (gradient,) = torch.autograd.grad(loss, S)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert dense.weights_of_scores(objective, S.detach().float(), query_ids, None).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "arguments"), EXTREME_AND_LEARNED)
def test_collapsed_and_opposed_embeddings_stay_finite(name, arguments, dtype):
    objective = make(name, **arguments)
    queries = torch.ones(4, 8, dtype=dtype, requires_grad=True)
    for candidates in (torch.ones(4, 8, dtype=dtype), -torch.ones(4, 8, dtype=dtype)):
        loss = objective(queries, candidates, query_ids=torch.tensor([0, 0, 1, 2]))
        gradients = torch.autograd.grad(loss, [queries, *objective.parameters()])
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("name", "arguments"), EXTREME_AND_LEARNED)
def test_anchors_without_negatives_lose_nothing(name, arguments, count):
    objective = make(name, **arguments)
    queries = torch.randn(count, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = objective(queries, -queries.detach(), query_ids=torch.zeros(count, dtype=torch.int64))
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, [queries, *objective.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)
    assert (objective.pair_weights(queries, -queries, query_ids=torch.zeros(count, dtype=torch.int64)) == 0).all()
