"""Every objective against the written-out formulas: value, gradient and pair weights, in float64."""

import pytest
import torch

from allpairs.objectives import from_scores, make
from tests.allpairs.objectives import reference

IDS = {"no_ids": None, "ids": [0, 1, 0, 2, 3, 1, 0], "one_instance": [5] * 7}


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    candidates = 0.6 * queries + torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return queries.requires_grad_(), candidates.requires_grad_()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize(("name", "arguments"), reference.CASES)
def test_value_and_gradient(name, arguments, ids, reduction, embeddings):
    objective = make(name, **arguments, reduction=reduction).double()
    query_ids = None if IDS[ids] is None else torch.tensor(IDS[ids])
    if arguments.get("learn_scale"):  # start from a float64 number, not from one rounded to float32
        objective.log_scale.data.fill_(torch.tensor(arguments["scale"], dtype=torch.float64).log())
    actual = objective(*embeddings, query_ids=query_ids)
    actual_gradient = torch.autograd.grad(actual, embeddings)

    S = reference.scores(*map(reference.unit, embeddings))
    expected = reference.loss(name, S, ids=IDS[ids], reduction=reduction, **arguments)
    close(actual, expected)
    for one, other in zip(actual_gradient, torch.autograd.grad(expected, embeddings), strict=True):
        close(one, other)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("name", ["triplet", "triplet_hn", "unified"])
def test_one_margin_per_pair(name, ids, embeddings):
    margins = [0.0, 0.4, -0.1, 0.2, 0.9, 0.3, 0.05]
    query_ids = None if IDS[ids] is None else torch.tensor(IDS[ids])
    arguments = {"scale": 20.0} if name == "unified" else {}
    objective = make(name, margin=0.2, **arguments)
    given = {"query_ids": query_ids, "margins": torch.tensor(margins, dtype=torch.float64)}
    actual = objective(*embeddings, **given)
    actual_gradient = torch.autograd.grad(actual, embeddings)

    S = reference.scores(*map(reference.unit, embeddings)).detach().requires_grad_()
    expected = reference.loss(name, S, ids=IDS[ids], margins=margins, **arguments)
    close(actual, expected)
    close(objective.pair_weights(*embeddings, **given), torch.autograd.grad(expected, S)[0])

    expected = reference.loss(
        name, reference.scores(*map(reference.unit, embeddings)), ids=IDS[ids], margins=margins, **arguments
    )
    for one, other in zip(actual_gradient, torch.autograd.grad(expected, embeddings), strict=True):
        close(one, other)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize(("name", "arguments"), reference.CASES[:-1])
def test_pair_weights_are_the_derivative_by_the_scores(name, arguments, ids, reduction, embeddings):
    query_ids = None if IDS[ids] is None else torch.tensor(IDS[ids])
    objective = make(name, **arguments, reduction=reduction)
    actual = objective.pair_weights(*embeddings, query_ids=query_ids)

    S = reference.scores(*map(reference.unit, embeddings)).detach().requires_grad_()
    expected = reference.loss(name, S, ids=IDS[ids], reduction=reduction, **arguments)
    close(actual, torch.autograd.grad(expected, S)[0])


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize(("name", "arguments"), reference.CASES[:-1])
def test_from_scores(name, arguments, ids):
    S = torch.empty(7, 7, dtype=torch.float64).uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
    S.requires_grad_()
    query_ids = None if IDS[ids] is None else torch.tensor(IDS[ids])
    actual = from_scores(make(name, **arguments), S, candidate_ids=query_ids)
    expected = reference.loss(name, S, ids=IDS[ids], **arguments)
    close(actual, expected)
    close(torch.autograd.grad(actual, S)[0], torch.autograd.grad(expected, S)[0])


def test_gradient_of_the_learned_scale(embeddings):
    objective = make("vlc", scale=12.0, learn_scale=True)
    ids = [0, 1, 0, 2, 3, 1, 0]
    objective(*embeddings, query_ids=torch.tensor(ids)).backward()

    log_scale = objective.log_scale.detach().double().requires_grad_()
    S = reference.scores(*map(reference.unit, embeddings))
    reference.loss("vlc", S, ids=ids, scale=log_scale.exp()).backward()
    torch.testing.assert_close(objective.log_scale.grad.double(), log_scale.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "arguments"), reference.CASES[:-1])
def test_normalize_false_takes_the_embeddings_as_they_are(name, arguments, embeddings):
    actual = make(name, **arguments, normalize=False)(*embeddings)
    close(actual, reference.loss(name, reference.scores(*embeddings), **arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "arguments"), reference.CASES[:-1])
def test_lower_precision_is_compared_in_float32(name, arguments, dtype, embeddings):
    queries, candidates = (x.detach().to(dtype).requires_grad_() for x in embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = make(name, **arguments)(queries, candidates)
    actual.backward()
    assert actual.dtype == torch.float32
    assert queries.grad.dtype == dtype
    S = reference.scores(reference.unit(queries.detach().double()), reference.unit(candidates.detach().double()))
    torch.testing.assert_close(actual.double(), reference.loss(name, S, **arguments), rtol=1e-5, atol=1e-6)
