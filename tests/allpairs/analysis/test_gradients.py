"""Tangential gradient norms: against autograd, U-Eq. 9 to 18 written out, and what happens as batches collapse."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from allpairs.analysis.gradients import spread, tangential, tangential_norms
from allpairs.analysis.spreading import compared, on_embeddings, on_synthetic, vanishing_order
from allpairs.analysis.synthetic import NOISE_LEVELS, collapsed, twins
from allpairs.errors import UserError
from allpairs.objectives import make


def unit_batch(size=12, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, c = (normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    return q, normalize(q + 0.8 * c, dim=1)


def test_the_tangential_part_is_the_norm_times_the_sine():
    x = torch.tensor([[1.0, 0.0, 0.0]] * 3, dtype=torch.float64)
    g = torch.tensor([[2.0, 0, 0], [0, 3, 4], [1, math.sqrt(3), 0]], dtype=torch.float64)
    # Angles 0°, 90°, 60°.
    expected = torch.tensor([0.0, 5.0, 2 * math.sin(math.pi / 3)], dtype=torch.float64)
    torch.testing.assert_close(tangential(g, x), expected)


@pytest.mark.parametrize("variant", compared(), ids=lambda variant: variant.label)
@pytest.mark.parametrize("with_ids", [False, True])
def test_the_batch_norm_is_autograds_through_the_normalisation(variant, with_ids):
    """At a unit vector the gradient through x/‖x‖ is exactly the tangential part."""
    q, c = unit_batch()
    ids = torch.arange(12) // 2 if with_ids else None
    found = tangential_norms(variant.make(), q, c, ids=ids).batch
    q, c = q.clone().requires_grad_(), c.clone().requires_grad_()
    objective = type(variant)(variant.name, variant.arguments | {"reduction": "sum"}).make()
    objective(q, c, query_ids=ids, candidate_ids=ids, backend="dense").backward()
    expected = torch.cat([q.grad.norm(dim=1), c.grad.norm(dim=1)]).mean()
    assert expected > 0
    assert found == pytest.approx(float(expected), rel=1e-9)


def along_sphere(gradient, at):
    cosine = float(gradient @ at) / float(gradient.norm())
    return float(gradient.norm()) * math.sqrt(1 - cosine**2)


def test_triplet_hn_is_u_eq_9_to_12():
    v, t = unit_batch(seed=1)
    anchors, negatives = [], []
    for V, T in ((v, t), (t, v)):
        for i in range(12):
            s = V[i] @ T.T
            hardest = max((j for j in range(12) if j != i), key=lambda j: s[j])
            active = s[hardest] - s[i] + 0.2 > 0
            anchors.append(along_sphere(T[hardest] - T[i], V[i]) if active else 0.0)
            negatives.append(along_sphere(V[i], T[hardest]) if active else 0.0)
    assert 0 < sum(a == 0 for a in anchors) < 24
    found = tangential_norms(make("triplet_hn", margin=0.2), v, t)
    assert found.anchor == pytest.approx(sum(anchors) / 24, rel=1e-9)
    assert found.negative == pytest.approx(sum(negatives) / 24, rel=1e-9)
    assert found.printed == pytest.approx(found.anchor, rel=1e-9)  # one negative: the sum of norms has one term


def test_unified_is_u_eq_14_to_18_with_the_denominator_corrected():
    v, t = unit_batch(seed=2)
    anchors, printed, negatives = [], [], []
    for V, T in ((v, t), (t, v)):
        for i in range(12):
            D = {j: math.exp(float(V[i] @ T[j] - V[i] @ T[i]) + 0.2) for j in range(12) if j != i}
            total = 1 + sum(D.values())
            gradient = sum((T[j] - T[i]) * (D[j] / total) for j in D)
            anchors.append(along_sphere(gradient, V[i]))
            printed.append(sum(along_sphere(T[j] - T[i], V[i]) * D[j] / total for j in D))
            negatives.append(max(along_sphere(V[i] * (D[j] / total), T[j]) for j in D))
    found = tangential_norms(make("unified", margin=0.2, scale=1.0), v, t)
    assert found.anchor == pytest.approx(sum(anchors) / 24, rel=1e-9)
    assert found.printed == pytest.approx(sum(printed) / 24, rel=1e-9)
    assert found.negative == pytest.approx(sum(negatives) / 24, rel=1e-9)
    assert found.printed > 1.5 * found.anchor  # U-Eq. 17 is a bound, and not a tight one


def test_weights_that_do_not_add_up_leave_a_remainder_at_the_positive():
    """GOAL (con, lin) pulls with 1 − d and pushes with h: h·(t̂ − t) + (h − (1 − d))·t."""
    v, t = unit_batch(seed=3)
    printed = []
    for V, T in ((v, t), (t, v)):
        for i in range(12):
            s = V[i] @ T.T
            hardest = max((j for j in range(12) if j != i), key=lambda j: s[j])
            d, h = float(s[i]), float(s[hardest])
            norm = abs(h) * along_sphere(T[hardest] - T[i], V[i]) + abs(h - 1 + d) * along_sphere(T[i], V[i])
            printed.append(norm if 0.2 + h - d > 0 else 0.0)
    found = tangential_norms(make("goal", triplet="con", pair="lin"), v, t)
    assert found.printed == pytest.approx(sum(printed) / 24, rel=1e-9)


@pytest.mark.parametrize("variant", compared(), ids=lambda variant: variant.label)
def test_the_sum_of_norms_bounds_the_norm_of_the_sum(variant):
    found = tangential_norms(variant.make(), *unit_batch(seed=4))
    assert found.printed >= found.anchor * (1 - 1e-12) > 0


def test_the_reduction_and_the_length_of_embeddings_change_nothing():
    q, c = unit_batch()
    plain = tangential_norms(make("unified"), q, c)
    assert tangential_norms(make("unified", reduction="sum"), 3 * q, 0.1 * c) == pytest.approx(plain)


@pytest.mark.parametrize("generate", [collapsed, twins])
def test_synthetic_batches_are_seeded_units_that_close_up(generate):
    q, c = generate(0.1, size=32, dim=64, seed=3)
    again, _ = generate(0.1, size=32, dim=64, seed=3)
    other, _ = generate(0.1, size=32, dim=64, seed=4)
    assert torch.equal(q, again)
    assert not torch.equal(q, other)
    torch.testing.assert_close(q.norm(dim=1), torch.ones(32, dtype=torch.float64))
    spreads = [spread(*generate(noise, size=32, dim=64, seed=3)) for noise in NOISE_LEVELS]
    assert [s.positives for s in spreads] == sorted((s.positives for s in spreads), reverse=True)
    assert spreads[-1].positives == pytest.approx(NOISE_LEVELS[-1] ** 2, rel=0.2)
    S = q @ c.T
    hardest = S.masked_fill(torch.eye(32, dtype=torch.bool), -1).amax(dim=1)
    assert hardest.min() > 0.95
    assert (spreads[-1].negatives < 1e-5) == (generate is collapsed)


def test_spread_by_hand():
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    c = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert tuple(spread(q, c)) == pytest.approx((0.5, 1.5))  # positives 1, 0; negatives −1, 0


def test_in_a_collapsed_batch_every_gradient_vanishes_with_the_noise():
    """U §3.3 claims it of triplet_hn alone; the unified loss does no better where all similarities → 1."""
    points = on_synthetic("collapsed", size=32, dim=64, seed=0)
    for label in points[0].norms:
        if label != "ssp":  # exactly 0 once d ≥ 1 − 1e-5, as in its released code
            assert vanishing_order(points, label, "anchor") == pytest.approx(1, abs=0.01), label
            assert vanishing_order(points, label, "negative") == pytest.approx(1, abs=0.01), label
    last = points[-1].norms
    assert last["unified"].anchor < last["triplet_hn"].anchor
    assert vanishing_order(points, "ssp", "anchor") is None


def test_where_only_the_hardest_negative_collapses_a_small_scale_keeps_the_gradient():
    """The premise of U §3.3: it then holds for γ = 1, for which it is argued, not for the published γ = 60."""
    points = on_synthetic("twins", size=32, dim=64, seed=0)
    assert vanishing_order(points, "triplet_hn", "anchor") == pytest.approx(1, abs=0.01)
    assert vanishing_order(points, "unified(scale=1.0)", "anchor") == pytest.approx(0, abs=0.01)
    assert vanishing_order(points, "unified(scale=1.0)", "negative") == pytest.approx(0, abs=0.01)
    assert vanishing_order(points, "unified", "anchor") == pytest.approx(1, abs=0.01)
    assert points[-1].norms["unified(scale=1.0)"].anchor > 50 * points[-1].norms["triplet_hn"].anchor


def test_real_embeddings_are_measured_batch_by_batch(make_embeddings):
    embeddings = make_embeddings(images=40, captions=1, run="r", objective="vlc", arguments={"scale": 7.0})
    variants = compared([embeddings.origin])
    point = on_embeddings(embeddings, variants, size=40, seed=0)
    order = embeddings.image_ids.argsort(), embeddings.caption_ids.argsort()
    q, c = torch.from_numpy(embeddings.images[order[0]]), torch.from_numpy(embeddings.captions[order[1]])
    assert point.norms["unified"] == pytest.approx(tangential_norms(make("unified"), q.double(), c.double()))
    assert point.spread == pytest.approx(spread(q.double(), c.double()))
    assert "vlc(scale=7.0)" in point.norms  # the objective it was trained with joins the others
    halves = on_embeddings(embeddings, variants, size=20, seed=0)
    assert halves.norms["triplet"].anchor < point.norms["triplet"].anchor  # fewer negatives, summed


def test_pairs_that_do_not_match_are_refused():
    q, c = unit_batch()
    with pytest.raises(UserError, match="row i must match row i"):
        tangential_norms(make("unified"), q, c[:5])
