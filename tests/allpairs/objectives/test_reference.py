"""The reference and the library against numbers worked out by hand: neither is trusted without them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from allpairs.objectives import from_scores, make
from tests.allpairs.objectives import cases

LN3 = math.log(3)


def library_loss(name: str, S: Tensor, query_ids=None, candidate_ids=None, **arguments) -> Tensor:
    ids = {"query_ids": query_ids, "candidate_ids": candidate_ids}
    given = {side: torch.tensor(value) for side, value in ids.items() if value is not None}
    return from_scores(make(name, **arguments), S, **given)


def library_weights(name: str, S: Tensor, **arguments) -> Tensor:
    S = S.detach().requires_grad_()
    return torch.autograd.grad(library_loss(name, S, **arguments), S)[0]


loss_of = pytest.mark.parametrize("loss", [cases.loss, library_loss], ids=["reference", "library"])
weights_of = pytest.mark.parametrize("weights", [cases.pair_weights, library_weights], ids=["reference", "library"])

# Every positive 0.8, every negative 0.5: each of the four anchors loses the same.
PAIR = torch.tensor([[0.8, 0.5], [0.5, 0.8]], dtype=torch.float64)
PER_ANCHOR = [
    ("triplet", {"margin": 0.4}, 0.1),
    ("triplet", {"margin": 0.2}, 0.0),
    ("triplet_hn", {"margin": 0.4}, 0.1),
    ("vlc", {"scale": LN3 / 0.3}, math.log(4 / 3)),
    ("nt_xent", {"temperature": 0.3 / LN3}, math.log(4 / 3)),
    ("nt_xent_hn", {"tau": LN3 / 0.3}, math.log(4 / 3)),
    ("unified", {"margin": 0.3, "scale": 7.0}, math.log(2) / 7),
    # linear: 0.5·0.5 − (2−0.8)·0.8 = −0.71
    ("unified", {"margin": 0.71, "scale": 7.0, "weighting": "linear"}, math.log(2) / 7),
    # sigmoid: the negative lies at λ, so its weight is 1/2
    (
        "unified",
        {"margin": 0.1, "scale": 7.0, "weighting": "sigmoid"},
        math.log1p(math.exp(7 * (0.25 - 0.8 / (1 + math.exp(0.6)) + 0.1))) / 7,
    ),
    # ssp: (0.03 − 0.2 + 0.225) + (0.5 − 0.56 + 0.128) = 0.055 + 0.068
    ("unified", {"margin": -0.123, "scale": 7.0, "weighting": "ssp"}, math.log(2) / 7),
    ("unified", {"margin": 0.3, "scale": 7.0, "weighting": "rsp"}, math.log(2) / 7),
    # rsp: 0.5 − 0.3 = 0.2
    (
        "unified",
        {"margin": -0.2, "scale": 7.0, "weighting": "rsp", "coefficients": (0.5, 1.0, 0.0)},
        math.log(2) / 7,
    ),
    ("ssp", {"margin": 0.4}, 0.068 + 0.055),
    ("ssp", {"margin": 0.2}, 0.0),  # no negative within the margin
    ("ssp", {"margin": 0.4, "positive": (-0.3, 0.0, 0.0), "negative": (0.03, 0.0, 0.0)}, 0.03),  # two hinges, not one
    ("rsp", {"margin": 0.4}, 0.1),
    ("rsp", {"margin": 0.5, "coefficients": (0.1, 1.0, 1.0)}, 0.39),  # 0.1 − 0.3 + 0.09 + 0.5
    ("rsp", {"margin": 0.1, "coefficients": (0.1, 1.0, 1.0)}, 0.0),
    # circle: γ(0.75·0.25 − 0.45·0.05) = 0.165γ
    ("circle", {"margin": 0.25, "scale": LN3 / 0.165}, math.log(4)),
    ("binomial_deviance", {"alpha": LN3 / 0.3, "beta": 9.0}, math.log(4 / 3) + math.log(2)),
    ("lifted", {"alpha": 40.0, "beta": 2.0}, -1.6 + 1.0),
    ("multi_similarity", {"epsilon": 0.1}, 0.0),
    (
        "multi_similarity",
        {"epsilon": 0.4, "alpha": LN3 / 0.3, "beta": 9.0},
        math.log(4 / 3) / (LN3 / 0.3) + math.log(2) / 9,
    ),
    ("smooth_ap", {"temperature": 0.3 / LN3}, 0.2),  # σ(−ln 3) = 1/4: AP = 1/1.25
    ("goal", {}, -0.3),
    ("goal", {"triplet": "cir", "pair": "sig_ms"}, -0.3),
]


@loss_of
@pytest.mark.parametrize(("name", "arguments", "per_anchor"), PER_ANCHOR)
def test_four_equal_anchors(loss, name, arguments, per_anchor):
    assert loss(name, PAIR, **arguments).item() == pytest.approx(2 * per_anchor, rel=1e-12, abs=1e-12)
    assert loss(name, PAIR, **arguments, reduction="sum").item() == pytest.approx(4 * per_anchor, rel=1e-12, abs=1e-12)


# (P₋, P₊) of d = 0.8 and h = 0.5, the two anchors' relative sets still empty at ε = 0.1.
PAIR_WEIGHT = [
    ("con", {}, 1.0, 1.0),
    ("lin", {}, 0.5, 0.2),
    ("sig", {"alpha": LN3 / 0.3}, 0.5, 0.25),
    ("lin_ms", {}, 0.5, 0.2),
    ("sig_ms", {"alpha": LN3 / 0.3}, 0.5, 0.25),  # an empty set counts 1: the same as sig
]
TRIPLET_WEIGHT = [
    ("con", {"margin": 0.4}, 1.0),
    ("con", {"margin": 0.2}, 0.0),
    ("con", {"margin": None}, 1.0),
    ("nca", {"tau": LN3 / 0.3}, 0.25),
    ("cir", {"tau": LN3 / 0.71}, 0.25),  # 0.8·1.2 − 0.25 = 0.71
    ("cir", {"tau": LN3 / 0.21, "offset": 0.5}, 0.25),
]


@weights_of
@pytest.mark.parametrize("pair", PAIR_WEIGHT, ids=str)
@pytest.mark.parametrize("triplet", TRIPLET_WEIGHT, ids=str)
def test_goal_of_four_equal_anchors(weights, triplet, pair):
    (triplet_name, triplet_arguments, t), (pair_name, pair_arguments, minus, plus) = triplet, pair
    names = {"triplet": triplet_name, "pair": pair_name}
    W = weights("goal", PAIR, **names, **triplet_arguments, **pair_arguments, reduction="sum")
    expected = torch.tensor([[-2 * t * plus, 2 * t * minus], [2 * t * minus, -2 * t * plus]], dtype=torch.float64)
    torch.testing.assert_close(W, expected, rtol=1e-12, atol=1e-12)


# Positives 0.8, 0.6, 0.7. With ε = 0.25 the bound of 𝒩 is 0.6 − 0.25 = 0.35, and those of 𝒫 are 0.75, 0.75, 0.65:
#   anchor 0: h = 0.5 at 1; 𝒫 = {0.6, 0.7}, 𝒩 = {} (0.3 is below the bound)
#   anchor 1: h = 0.5 at 0; 𝒫 = {0.7},      𝒩 = {0.4}
#   anchor 2: h = 0.4 at 1; 𝒫 = {0.6},      𝒩 = {}
# The matrix is symmetric, so rows and columns give the same.
THREE = torch.tensor([[0.8, 0.5, 0.3], [0.5, 0.6, 0.4], [0.3, 0.4, 0.7]], dtype=torch.float64)


@weights_of
def test_relative_terms_of_lin_ms(weights):
    W = weights("goal", THREE, triplet="con", pair="lin_ms", margin=None, epsilon=0.25, reduction="sum")
    # (1 − m₊)(1 − d): m₊ = 0.15, −0.1, 0.1.   (1 + m₋)h: m₋ = 0, 0.1, 0.
    R = torch.tensor([[-0.85 * 0.2, 0.5, 0], [1.1 * 0.5, -1.1 * 0.4, 0], [0, 0.4, -0.9 * 0.3]], dtype=torch.float64)
    torch.testing.assert_close(W, R + R.T, rtol=1e-12, atol=1e-12)


@weights_of
def test_relative_terms_of_sig_ms(weights):
    W = weights(
        "goal", THREE, triplet="con", pair="sig_ms", margin=None, epsilon=0.25, alpha=2.0, beta=10.0, reduction="sum"
    )
    exp = math.exp
    plus = [
        1 / ((exp(0.4) + exp(0.2)) / 2 + exp(0.6)),
        1 / (exp(-0.2) + exp(0.2)),
        1 / (exp(0.2) + exp(0.4)),
    ]
    minus = [1 / (1 + exp(0)), 1 / (exp(-1) + exp(0)), 1 / (1 + exp(1))]
    R = torch.tensor([[-plus[0], minus[0], 0], [minus[1], -plus[1], 0], [0, minus[2], -plus[2]]], dtype=torch.float64)
    torch.testing.assert_close(W, R + R.T, rtol=1e-12, atol=1e-12)


@loss_of
def test_goal_value_is_the_sum_of_hardest_negative_minus_positive(loss):
    # Rows and columns: 0.5−0.8, 0.5−0.6, 0.4−0.7, whatever the weights.
    for pair in cases.PAIR_WEIGHTS:
        value = loss("goal", THREE, triplet="cir", pair=pair, reduction="sum")
        assert value.item() == pytest.approx(2 * (-0.3 - 0.1 - 0.3), rel=1e-12)


# One image with two captions, one with one. Rows see 3 captions, columns 2 images.
CAPTIONS = torch.tensor([[0.8, 0.6, 0.5], [0.4, 0.7, 0.9]], dtype=torch.float64)
TWO_AND_ONE = {"query_ids": [7, 8], "candidate_ids": [7, 7, 8]}


@loss_of
def test_sets_of_unequal_lengths(loss: Callable[..., Tensor]):
    exp, log = math.exp, math.log

    def softplus(x: float) -> float:
        return log(1 + exp(x))

    def sigma(x: float) -> float:
        return 1 / (1 + exp(-x))

    # binomial deviance with α = β = 1, λ = 0: means over each set
    rows_ = [
        (softplus(-0.8) + softplus(-0.6)) / 2 + softplus(0.5),
        softplus(-0.9) + (softplus(0.4) + softplus(0.7)) / 2,
    ]
    columns = [softplus(-0.8) + softplus(0.4), softplus(-0.6) + softplus(0.7), softplus(-0.9) + softplus(0.5)]
    value = loss("binomial_deviance", CAPTIONS, **TWO_AND_ONE, alpha=1.0, beta=1.0, threshold=0.0)
    assert value.item() == pytest.approx(sum(rows_) / 2 + sum(columns) / 3, rel=1e-12)
    value = loss("binomial_deviance", CAPTIONS, **TWO_AND_ONE, alpha=1.0, beta=1.0, threshold=0.0, reduction="sum")
    assert value.item() == pytest.approx(sum(rows_) + sum(columns), rel=1e-12)

    # lifted with α = 1, β = 2: (2/2)·LSE(−2 s_p) + (2/1)·LSE(s_n)
    rows_ = [log(exp(-1.6) + exp(-1.2)) + 2 * 0.5, -1.8 + 2 * log(exp(0.4) + exp(0.7))]
    columns = [-1.6 + 0.8, -1.2 + 1.4, -1.8 + 1.0]
    value = loss("lifted", CAPTIONS, **TWO_AND_ONE, alpha=1.0, beta=2.0)
    assert value.item() == pytest.approx(sum(rows_) / 2 + sum(columns) / 3, rel=1e-12)

    # smooth AP with τ = 1; the positives of row 0 rank each other too
    up, down = sigma(0.2), sigma(-0.2)
    rows_ = [
        1 - ((1 + down) / (1 + down + sigma(-0.3)) + (1 + up) / (1 + up + sigma(-0.1))) / 2,
        1 - 1 / (1 + sigma(-0.5) + sigma(-0.2)),
    ]
    columns = [1 - 1 / (1 + sigma(-0.4)), 1 - 1 / (1 + sigma(0.1)), 1 - 1 / (1 + sigma(-0.4))]
    value = loss("smooth_ap", CAPTIONS, **TWO_AND_ONE, temperature=1.0)
    assert value.item() == pytest.approx(sum(rows_) / 2 + sum(columns) / 3, rel=1e-12)

    # multi-similarity with ε = 0.1, α = β = 1, λ = 0. Row 0: 0.5 + ε is no more than the lowest positive 0.6: nothing;
    # row 1: 0.7 + ε < 0.9: nothing; column 1 alone: 0.7 + ε > 0.6.
    value = loss("multi_similarity", CAPTIONS, **TWO_AND_ONE, alpha=1.0, beta=1.0, threshold=0.0, epsilon=0.05)
    assert value.item() == pytest.approx((softplus(-0.6) + softplus(0.7)) / 3, rel=1e-12)
    # ε = 0.25: row 0 keeps 0.5 and both positives but 0.8 (0.55 > 0.5); row 1 keeps 0.7 and 0.9, not 0.4.
    value = loss("multi_similarity", CAPTIONS, **TWO_AND_ONE, alpha=1.0, beta=1.0, threshold=0.0, epsilon=0.25)
    rows_ = [softplus(-0.6) + softplus(0.5), softplus(-0.9) + softplus(0.7)]
    assert value.item() == pytest.approx(sum(rows_) / 2 + (softplus(-0.6) + softplus(0.7)) / 3, rel=1e-12)

    # circle with γ = 1, m = 0: s_n·s_n and −(1 − s_p)(s_p − 1) = (1 − s_p)²
    rows_ = [
        softplus(0.25 + log(exp(0.04) + exp(0.16))),
        softplus(log(exp(0.16) + exp(0.49)) + 0.01),
    ]
    columns = [softplus(0.16 + 0.04), softplus(0.49 + 0.16), softplus(0.25 + 0.01)]
    value = loss("circle", CAPTIONS, **TWO_AND_ONE, margin=0.0, scale=1.0)
    assert value.item() == pytest.approx(sum(rows_) / 2 + sum(columns) / 3, rel=1e-12)


@weights_of
def test_circle_weights_are_constants(weights):
    # Row and column 0 with γ = 1, m = 0: p = σ(0.25 + 0.04); ∂/∂s_n = p·0.5, ∂/∂s_p = −p·0.2 (not twice that).
    W = weights("circle", PAIR, margin=0.0, scale=1.0, reduction="sum")
    p = 1 / (1 + math.exp(-0.29))
    expected = torch.tensor([[-0.4 * p, p], [p, -0.4 * p]], dtype=torch.float64)
    torch.testing.assert_close(W, expected, rtol=1e-12, atol=1e-12)


@weights_of
def test_weights_of_the_weighted_unified_loss_are_constants_unless_told(weights):
    # linear, at the point where the exponent is 0: p = 1/2. Detached ∂/∂s = w: 0.5 and −1.2; else 2s and −(2 − 2d).
    arguments = {"margin": 0.71, "scale": 7.0, "weighting": "linear", "reduction": "sum"}
    W = weights("unified", PAIR, **arguments)
    expected = torch.tensor([[-1.2, 0.5], [0.5, -1.2]], dtype=torch.float64)
    torch.testing.assert_close(W, expected, rtol=1e-12, atol=1e-12)
    W = weights("unified", PAIR, **arguments, detach_weights=False)
    expected = torch.tensor([[-0.4, 1.0], [1.0, -0.4]], dtype=torch.float64)
    torch.testing.assert_close(W, expected, rtol=1e-12, atol=1e-12)


@loss_of
@pytest.mark.parametrize("name", cases.SETS)
def test_empty_sets(loss, name):
    """One instance: no negatives. Instances that never meet: no positives."""
    S = torch.tensor([[0.3, 0.6]], dtype=torch.float64)
    no_negatives = loss(name, S, query_ids=[1], candidate_ids=[1, 1]).item()
    no_positives = loss(name, S, query_ids=[1], candidate_ids=[2, 3]).item()
    log, exp = math.log, math.exp
    if name == "binomial_deviance":
        a, b = log(1 + exp(2 * 0.2)), log(1 + exp(-2 * 0.1))
        assert no_negatives == pytest.approx((a + b) / 2 + (a + b) / 2, rel=1e-12)
        a, b = log(1 + exp(-40 * 0.2)), log(1 + exp(40 * 0.1))
        assert no_positives == pytest.approx((a + b) / 2 + (a + b) / 2, rel=1e-12)
    elif name == "lifted":
        assert no_negatives == pytest.approx(log(exp(-0.6) + exp(-1.2)) - (0.6 + 1.2) / 2, rel=1e-12)
        expected = log(exp(12) + exp(24)) / 20 + (0.6 + 1.2) / 2
        assert no_positives == pytest.approx(expected, rel=1e-12)
    elif name == "siglip":  # γS + b is −7 and −4; half of both for the one query, half of either for its candidate
        a, b = log(1 + exp(7)), log(1 + exp(4))
        assert no_negatives == pytest.approx((a + b) / 2 + (a / 2 + b / 2) / 2, rel=1e-12)
        a, b = log(1 + exp(-7)), log(1 + exp(-4))
        assert no_positives == pytest.approx((a + b) / 2 + (a / 2 + b / 2) / 2, rel=1e-12)
    else:
        assert no_negatives == pytest.approx(0, abs=1e-15)
        assert no_positives == 0


@loss_of
@pytest.mark.parametrize("name", [name for name in cases.TABLE if name not in cases.SETS])
def test_no_negative_loses_nothing(loss, name):
    """One pair alone; of two with one id, which are each other's negatives neither, the library refuses to learn."""
    assert loss(name, torch.tensor([[0.1]], dtype=torch.float64), query_ids=[1]).item() == 0


@loss_of
def test_ssp_leaves_a_perfect_positive_alone(loss):
    S = torch.tensor([[1.0, 0.95], [0.95, 0.9]], dtype=torch.float64)
    second = (0.5 - 0.63 + 0.162) + (0.9 * 0.95**2 - 0.38 + 0.03)
    assert loss("ssp", S, reduction="sum").item() == pytest.approx(2 * second, rel=1e-12)
