"""How the objectives are members of one family (U-Eq. 6 and 7, G Table 1), and what numbers they must survive."""

import itertools
import math

import pytest
import torch

from allpairs.objectives import from_scores, make
from tests.allpairs.objectives import cases

LEARNED = ("vlc", {"scale": 100.0, "learn_scale": True})


BACKENDS = {"dense": {"backend": "dense"}, "tiled": {"backend": "tiled", "tile": 4}}
over_backends = pytest.mark.parametrize("call", BACKENDS.values(), ids=BACKENDS)
over_ids = pytest.mark.parametrize("ids", [None, [0, 1, 2, 3, 4, 5, 0, 1, 8]], ids=["no_ids", "ids"])


def embeddings(count: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    candidates = 0.7 * queries + torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return queries.requires_grad_(), candidates.requires_grad_()


def tensor_of(ids: list[int] | None) -> torch.Tensor | None:
    return None if ids is None else torch.tensor(ids)


def gradients(objective, ids, call) -> tuple[torch.Tensor, ...]:
    inputs = embeddings()
    return torch.autograd.grad(objective(*inputs, query_ids=tensor_of(ids), **call), inputs)


def assert_same(ones, others, factor: float = 1.0) -> None:
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, factor * other, rtol=1e-12, atol=1e-12 * other.abs().max().item())


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


@over_backends
@over_ids
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 1.0])
def test_nt_xent_is_vlc_at_the_inverse_temperature(temperature, ids, call):
    inputs = embeddings()
    one = make("nt_xent", temperature=temperature)(*inputs, query_ids=tensor_of(ids), **call)
    other = make("vlc", scale=1 / temperature)(*inputs, query_ids=tensor_of(ids), **call)
    torch.testing.assert_close(one, other, rtol=1e-13, atol=0)
    assert_same(torch.autograd.grad(one, inputs), torch.autograd.grad(other, inputs))


@over_backends
@over_ids
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.7])
def test_rsp_of_the_identity_is_triplet_hn(margin, ids, call):
    inputs = embeddings()
    given = {"query_ids": tensor_of(ids), **call}
    one = make("rsp", margin=margin)(*inputs, **given)
    other = make("triplet_hn", margin=margin)(*inputs, **given)
    assert other > 0
    torch.testing.assert_close(one, other, rtol=1e-13, atol=0)
    assert_same(torch.autograd.grad(one, inputs), torch.autograd.grad(other, inputs))


@over_ids
def test_weightings_that_are_one_change_nothing(ids):
    S = random_scores(9)
    plain = from_scores(make("unified"), S, query_ids=tensor_of(ids))
    for arguments in (
        {"weighting": "rsp"},
        {"weighting": "ssp", "positive": (0.0, -1.0, 0.0), "negative": (0.0, 1.0, 0.0)},
        {"weighting": "rsp", "detach_weights": False},
    ):
        weighted = from_scores(make("unified", **arguments), S, query_ids=tensor_of(ids))
        torch.testing.assert_close(weighted, plain, rtol=1e-13, atol=1e-15)
        assert_same(
            torch.autograd.grad(weighted, S, retain_graph=True), torch.autograd.grad(plain, S, retain_graph=True)
        )


def assert_limit(weighted, limit, scale):
    """A sharp unified loss lies above its limit by at most log(B)/γ per anchor, and has its gradient."""
    count = 9
    S = random_scores(count)
    unified, hardest = from_scores(weighted, S), from_scores(limit, S)
    assert -1e-9 <= (unified - hardest).item() <= 2 * count * math.log(count) / scale
    torch.testing.assert_close(
        torch.autograd.grad(unified, S)[0], torch.autograd.grad(hardest, S)[0], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("coefficients", [(0.0, 1.0, 0.0), (0.1, 0.6, 0.3), (0.2, -0.4, 0.9)])
def test_rsp_is_the_limit_of_the_unified_loss_weighted_by_it(coefficients):
    """U-Eq. 25, the polynomial in the place of the difference."""
    given = {"margin": 0.2, "coefficients": coefficients, "reduction": "sum"}
    assert_limit(make("unified", scale=1e6, weighting="rsp", **given), make("rsp", **given), 1e6)


def test_ssp_is_the_limit_of_the_unified_loss_weighted_by_it_where_its_clamps_are_open():
    """Both polynomials are positive on [−1, 1] and the negatives' rises, so that the hardest by it is the hardest."""
    given = {"positive": (2.0, -0.7, 0.2), "negative": (1.0, 0.5, 0.1), "reduction": "sum"}
    assert_limit(
        make("unified", scale=1e6, margin=0.0, weighting="ssp", **given), make("ssp", margin=2.0, **given), 1e6
    )


@over_backends
@over_ids
@pytest.mark.parametrize("reduction", ["mean", "sum"])
class TestGoalTable1:
    """G Table 1: the combinations whose gradient is that of a loss."""

    @pytest.mark.parametrize("margin", [0.0, 0.2, 0.6])
    def test_con_con_is_triplet_hn(self, margin, reduction, ids, call):
        goal = make("goal", triplet="con", pair="con", margin=margin, reduction=reduction)
        triplet_hn = make("triplet_hn", margin=margin, reduction=reduction)
        assert_same(gradients(goal, ids, call), gradients(triplet_hn, ids, call))
        inputs = embeddings()
        weights = triplet_hn.pair_weights(*inputs, query_ids=tensor_of(ids))
        assert_same([goal.pair_weights(*inputs, query_ids=tensor_of(ids))], [weights])

    @pytest.mark.parametrize("tau", [1.0, 10.0, 50.0])
    def test_nca_con_times_tau_is_nt_xent_hn(self, tau, reduction, ids, call):
        goal = make("goal", triplet="nca", pair="con", tau=tau, reduction=reduction)
        nt_xent_hn = make("nt_xent_hn", tau=tau, reduction=reduction)
        assert_same(gradients(nt_xent_hn, ids, call), gradients(goal, ids, call), factor=tau)

    def test_cir_con_is_the_circle_of_squares(self, reduction, ids, call):
        """T^cir weighs by the exponent τ((d − 1)² + h² − 1): where d' = d(2 − d) and h' = h² are the scores of nca."""
        inputs = embeddings()
        cir = make("goal", triplet="cir", pair="con", tau=7.0, reduction=reduction)
        nca = make("goal", triplet="nca", pair="con", tau=7.0, reduction=reduction)
        S = (torch.nn.functional.normalize(inputs[0]) @ torch.nn.functional.normalize(inputs[1]).T).detach().abs()
        bent = torch.where(torch.eye(9, dtype=torch.bool), S * (2 - S), S * S)
        results = []
        for objective, given in ((cir, S), (nca, bent)):
            scores = given.clone().requires_grad_()
            results.append(torch.autograd.grad(from_scores(objective, scores, query_ids=tensor_of(ids)), scores))
        assert_same(*results)


@over_backends
@pytest.mark.parametrize(("name", "arguments"), cases.CASES)
def test_what_comes_after_the_objective_multiplies_its_gradient(name, arguments, call):
    """A loss scale, 1/accumulation, and gradients that add up, also where W is given without a loss."""
    objective = make(name, **arguments)
    plain = gradients(objective, None, call)
    assert all(gradient.abs().max() > 0 for gradient in plain)
    for factor in (3.0, 2.0**16, -0.5):
        inputs = embeddings()
        assert_same(torch.autograd.grad(objective(*inputs, **call) * factor, inputs), plain, factor)
    inputs = embeddings()
    for _ in range(4):
        (objective(*inputs, **call) / 4).backward()
    assert_same([side.grad for side in inputs], plain)
    inputs = embeddings()
    hinge = make("triplet_hn", margin=0.5)
    (2 * objective(*inputs, **call) + hinge(*inputs, **call)).backward()
    other = gradients(hinge, None, call)
    assert_same([side.grad for side in inputs], [2 * one + two for one, two in zip(plain, other, strict=True)])


@pytest.mark.parametrize("pair", ["con", "sig_ms"])
def test_what_comes_after_goal_on_scores_multiplies_its_weights(pair):
    S = random_scores(9)
    goal = make("goal", triplet="nca", pair=pair)
    (plain,) = torch.autograd.grad(from_scores(goal, S), S)
    (tripled,) = torch.autograd.grad(from_scores(goal, S) * 3, S)
    assert plain.abs().max() > 0
    assert_same([tripled], [plain], 3.0)


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


@pytest.mark.parametrize(("name", "arguments"), cases.EXTREME)
def test_constant_extreme_scores_stay_finite(name, arguments):
    objective = make(name, **arguments)
    every = itertools.product([torch.float32, torch.bfloat16], [-2.0, 0.0, 2.0], [-2.0, 0.0, 2.0])
    without_negatives = [] if objective.needs_negatives else [[7, 7, 7, 7]]  # who needs them refuses the batch
    for (dtype, positive, negative), ids in itertools.product(every, [None, [0, 0, 1, 2], *without_negatives]):
        S = torch.full((4, 4), negative, dtype=dtype).fill_diagonal_(positive).requires_grad_()
        loss = from_scores(objective, S, query_ids=None if ids is None else torch.tensor(ids))
        (gradient,) = torch.autograd.grad(loss, S)
        assert loss.isfinite(), (dtype, positive, negative, ids)
        assert gradient.isfinite().all(), (dtype, positive, negative, ids)


@pytest.mark.parametrize("name", cases.TABLE)
def test_a_score_that_is_nan_is_never_passed_over(name):
    for row, column in ((0, 0), (1, 2), (3, 0)):
        S = torch.eye(4)
        S[row, column] = torch.nan
        assert from_scores(make(name), S).isnan()
        assert from_scores(make(name), S, query_ids=torch.tensor([0, 0, 1, 2])).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "arguments"), [*cases.EXTREME, LEARNED])
def test_collapsed_and_opposed_embeddings_stay_finite(name, arguments, dtype):
    objective = make(name, **arguments)
    queries = torch.ones(4, 8, dtype=dtype, requires_grad=True)
    for candidates in (torch.ones(4, 8, dtype=dtype), -torch.ones(4, 8, dtype=dtype)):
        loss = objective(queries, candidates, query_ids=torch.tensor([0, 0, 1, 2]))
        gradients = torch.autograd.grad(loss, [queries, *objective.parameters()])
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "arguments"), [*(case for case in cases.EXTREME if case[0] not in cases.SETS), LEARNED]
)
def test_a_pair_without_negatives_loses_nothing(name, arguments):
    objective = make(name, **arguments)
    queries = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = objective(queries, -queries.detach(), query_ids=torch.zeros(1, dtype=torch.int64))
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, [queries, *objective.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)
    assert (objective.pair_weights(queries, -queries, query_ids=torch.zeros(1, dtype=torch.int64)) == 0).all()
