"""COCOS of one batch: counts worked out by hand, and C's definitions written out in loops."""

import math

import pytest
import torch

from allpairs.analysis.contributing import KEYS, count_contributing
from allpairs.analysis.variants import all_variants
from allpairs.errors import UserError
from allpairs.objectives import make, weights_from_scores

# Rows: images; columns: captions. Margin 0.2: a negative violates where it is above d − 0.2.
HAND = torch.tensor(
    [
        [0.9, 0.8, 0.1],  # above 0.7: one
        [0.6, 0.5, 0.4],  # above 0.3: two
        [0.0, 0.1, 0.7],  # above 0.5: none
    ],
    dtype=torch.float64,
)
# Columns: above 0.7: none; above 0.3: one (0.8); above 0.5: none.


def scores(rows=24, columns=24, seed=0, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    S = spread * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if rows == columns:
        S = S + 0.4 * torch.eye(rows, dtype=torch.float64)
    return S.clamp(-1, 1)


def test_triplet_by_hand():
    counts = count_contributing(make("triplet", margin=0.2), HAND)
    # Relative: every contributing negative, and the positive wherever there is one.
    assert counts["i2t"] == {"c_q": 1.5, "c_b": 3, "c_0": 1, "c_relative": pytest.approx((2 + 3 + 0) / 3)}
    assert counts["t2i"] == {"c_q": 1.0, "c_b": 1, "c_0": 2, "c_relative": pytest.approx(2 / 3)}


def test_triplet_sh_by_hand():
    counts = count_contributing(make("triplet_hn", margin=0.2), HAND)
    assert counts["i2t"] == {"c_q": 1.0, "c_b": 2, "c_0": 1, "c_relative": pytest.approx(4 / 3)}
    assert counts["t2i"] == {"c_q": 1.0, "c_b": 1, "c_0": 2, "c_relative": pytest.approx(2 / 3)}


def test_nothing_contributes_when_all_is_solved():
    S = torch.eye(4, dtype=torch.float64)
    for name in ("triplet", "triplet_hn", "rsp", "goal", "ssp"):
        assert count_contributing(make(name), S)["i2t"] == {"c_q": 0, "c_b": 0, "c_0": 4, "c_relative": 0}


def test_softmax_by_hand():
    # Shares in ninths, tenths and sevenths: e^{S/τ} = 6, 2, 1; 5, 4, 1; 1, 1, 5 with τ = 1.
    S = torch.tensor([[6.0, 2, 1], [5, 4, 1], [1, 1, 5]], dtype=torch.float64).log()
    counts = count_contributing(make("nt_xent", temperature=1.0), S, epsilon=0.12)
    # Above 0.12: 2/9 (1/9 is not); 5/10 (1/10 is not); 1/7 twice.
    assert counts["i2t"]["c"] == pytest.approx(4 / 3)
    assert counts["i2t"]["w_minus"] == pytest.approx((2 / 9 + 5 / 10 + 2 / 7) / 3)
    assert counts["i2t"]["w_plus"] == pytest.approx((3 / 9 + 6 / 10 + 2 / 7) / 3)
    # Columns 6, 5, 1; 2, 4, 1; 1, 1, 5: 5/12 (1/12 is not); 2/7 and 1/7; 1/7 twice.
    assert counts["t2i"]["c"] == pytest.approx(5 / 3)
    assert counts["t2i"]["w_minus"] == pytest.approx((5 / 12 + 3 / 7 + 2 / 7) / 3)


def test_the_margin_is_in_the_shares_of_unified():
    S = torch.tensor([[math.log(2), 0.0], [0.0, math.log(2)]], dtype=torch.float64)
    plain = count_contributing(make("unified", margin=0.0, scale=1.0), S)["i2t"]
    assert plain["w_plus"] == pytest.approx(1 / 3)
    wide = count_contributing(make("unified", margin=math.log(2), scale=1.0), S)["i2t"]
    assert wide["w_plus"] == pytest.approx(1 / 2)


def p_by_loops(S, exponent, ids):
    B = len(S)
    p = torch.zeros(B, B, dtype=torch.float64)
    for i in range(B):
        negatives = [j for j in range(B) if ids[j] != ids[i]]
        total = 1 + sum(math.exp(exponent(S, i, j)) for j in negatives)
        for j in negatives:
            p[i, j] = math.exp(exponent(S, i, j)) / total
        p[i, i] = 1 / total
    return p


SOFTMAX = {
    "vlc": ({"scale": 20.0}, lambda S, i, j: 20 * (S[i, j] - S[i, i])),
    "nt_xent": ({"temperature": 0.1}, lambda S, i, j: (S[i, j] - S[i, i]) / 0.1),
    "unified": ({"margin": 0.2, "scale": 30.0}, lambda S, i, j: 30 * (S[i, j] - S[i, i] + 0.2)),
}
LINEAR = lambda S, i, j: 30 * (min(max(S[i, j], 0), 1) * S[i, j] - (2 - S[i, i]) * S[i, i] + 0.2)  # noqa: E731


@pytest.mark.parametrize("name", [*SOFTMAX, "unified linear"])
def test_softmax_by_loops_with_ids(name):
    if name == "unified linear":
        objective, exponent = make("unified", margin=0.2, scale=30.0, weighting="linear"), LINEAR
    else:
        arguments, exponent = SOFTMAX[name]
        objective = make(name, **arguments)
    S, ids = scores(), torch.arange(24) // 2
    counts = count_contributing(objective, S, query_ids=ids, candidate_ids=ids, epsilon=0.02)
    for side, matrix in (("i2t", S), ("t2i", S.T)):
        p = p_by_loops(matrix, exponent, ids)
        off = p - torch.diag(p.diagonal())
        assert counts[side]["c"] == float((off > 0.02).sum()) / 24
        assert counts[side]["w_minus"] == pytest.approx(float(off[off > 0.02].sum()) / 24, rel=1e-10)
        assert counts[side]["w_plus"] == pytest.approx(float((1 - p.diagonal()).mean()), rel=1e-10)


def test_a_learned_scale_counts():
    learned = make("vlc", scale=20.0, learn_scale=True).eval()
    fixed = make("vlc", scale=20.0)
    counted, expected = (count_contributing(each, scores())["i2t"] for each in (learned, fixed))
    assert counted == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["triplet", "triplet_hn"])
def test_triplets_by_loops_with_ids(name):
    S, ids, margin = scores(seed=3), torch.arange(24) // 2, 0.3
    counts = count_contributing(make(name, margin=margin), S, query_ids=ids, candidate_ids=ids)
    for side, matrix in (("i2t", S), ("t2i", S.T)):
        per_anchor = []
        for i in range(24):
            negatives = [float(matrix[i, j]) for j in range(24) if ids[j] != ids[i]]
            considered = negatives if name == "triplet" else [max(negatives)]
            per_anchor.append(sum(margin + s - float(matrix[i, i]) > 0 for s in considered))
        active = sum(count > 0 for count in per_anchor)
        assert 0 < active < 24  # both kinds of anchors are there
        assert counts[side]["c_b"] == sum(per_anchor)
        assert counts[side]["c_q"] == pytest.approx(sum(per_anchor) / active)
        assert counts[side]["c_0"] == 24 - active


def smooth_ap_by_loops(S, positive, tau, epsilon, with_tau):
    """C-Eq. 13, one sample at a time."""

    def soft_step(x):
        return 1 / (1 + math.exp(-x / tau)) if x > -50 * tau else 0.0

    counts = []
    for q in range(len(S)):
        s = S[q].tolist()
        positives = [i for i in range(len(s)) if positive[q, i]]
        total = 0
        for i in positives:
            rank = 1 + sum(soft_step(s[j] - s[i]) for j in range(len(s)) if j != i)
            for j in range(len(s)):
                sim = soft_step(s[i] - s[j]) * (1 - soft_step(s[i] - s[j])) / (tau if with_tau else 1)
                total += j != i and sim / rank**2 > epsilon
        counts.append(total / len(positives))
    active = [count for count in counts if count > 0]
    return sum(active) / len(active) if active else 0.0, len(counts) - len(active)


@pytest.mark.parametrize("with_tau", [True, False])
def test_smooth_ap_by_loops(with_tau):
    images, k = 8, 3
    S = scores(images, images * k, seed=5)
    ids, caption_ids = torch.arange(images), torch.arange(images).repeat_interleave(k)
    S = S + 0.5 * (ids[:, None] == caption_ids)
    objective = make("smooth_ap", temperature=0.01)
    counts = count_contributing(objective, S, query_ids=ids, candidate_ids=caption_ids, with_tau=with_tau)
    positive = ids[:, None] == caption_ids
    for side, matrix, mask in (("i2t", S, positive), ("t2i", S.T, positive.T)):
        c_q, c_0 = smooth_ap_by_loops(matrix, mask, 0.01, 0.01, with_tau)
        assert 0 < c_0 < len(matrix)
        assert counts[side]["c_q"] == pytest.approx(c_q)
        assert counts[side]["c_0"] == c_0


def test_smooth_ap_by_hand():
    # Two images, two captions each. Image 0: positives 0.5 and 0.5, negatives far: each positive sees the other, with
    # sim = 0.25/τ and R = 1.5: (0.25/0.01)/2.25 > 0.01. Image 1: positives 0.9 and 0.4 far from everything: none.
    S = torch.tensor([[0.5, 0.5, -0.5, -0.5], [-0.2, -0.3, 0.9, 0.4]], dtype=torch.float64)
    counts = count_contributing(
        make("smooth_ap"), S, query_ids=torch.tensor([7, 8]), candidate_ids=torch.tensor([7, 7, 8, 8])
    )
    assert (counts["i2t"]["c_q"], counts["i2t"]["c_0"]) == (1.0, 1)
    # Captions: one positive each and one negative, never closer than 0.7.
    assert (counts["t2i"]["c_q"], counts["t2i"]["c_0"]) == (0.0, 4)


def test_without_tau_fewer_count():
    S = torch.tensor([[0.50, 0.47], [0.0, 1.0]], dtype=torch.float64)
    # D = 0.03 = 3τ: G(1 − G) = 0.045; R = 1.047: 0.041 and, with 1/τ, 4.1.
    assert count_contributing(make("smooth_ap"), S, epsilon=0.05)["i2t"]["c_0"] == 1
    assert count_contributing(make("smooth_ap"), S, epsilon=0.05, with_tau=False)["i2t"]["c_0"] == 2


@pytest.mark.parametrize("variant", all_variants(), ids=lambda variant: variant.label)
def test_every_objective_counts_relative_to_its_largest_weight(variant):
    objective, S = variant.make(), scores(seed=8)
    counts = count_contributing(objective, S)
    for side, direction in (("i2t", "rows"), ("t2i", "columns")):
        W = weights_from_scores(objective, S, direction=direction)
        W = (W if side == "i2t" else W.T).abs().tolist()
        expected = sum(sum(w > 0.01 * max(row) for w in row) for row in W) / len(W)
        assert counts[side]["c_relative"] == pytest.approx(expected)
        assert tuple(counts[side]) == KEYS[objective.family]
        assert 0 < expected < 24


def test_goal_counts_triplets_whose_weight_is_not_negligible():
    S = torch.full((3, 3), 0.0, dtype=torch.float64)
    S += torch.diag(torch.tensor([0.05, 0.9, 0.3], dtype=torch.float64))
    # T nca = σ(−10·(d − 0)): 0.38, 0.0001, 0.047, so the second is negligible.
    counts = count_contributing(make("goal", triplet="nca", pair="con"), S)
    assert counts["i2t"] == {"c_q": 1.0, "c_b": 2, "c_0": 1, "c_relative": 2.0}


def test_nt_xent_hn_leaves_tau_out():
    # σ(τ(h − d)) with τ = 10: d = 0.44 gives 0.0121, d = 0.48 gives 0.0082 (times τ both would exceed 0.01).
    S = torch.diag(torch.tensor([0.44, 0.48], dtype=torch.float64))
    assert count_contributing(make("nt_xent_hn"), S)["i2t"]["c_b"] == 1


@pytest.mark.parametrize("name", ["triplet", "goal", "nt_xent_hn", "multi_similarity", "smooth_ap", "vlc"])
def test_the_reduction_changes_nothing(name):
    S = scores(seed=4)
    mean, total = (count_contributing(make(name, reduction=reduction), S) for reduction in ("mean", "sum"))
    assert mean == total


def test_multi_similarity_counts_what_mining_keeps():
    # Row 0 keeps the negative 0.6 (+0.1 > 0.5); row 1 keeps none: anchors without count under c_0.
    S = torch.tensor([[0.5, 0.6, -0.9], [-0.9, 0.9, -0.8], [-0.9, -0.8, 0.9]], dtype=torch.float64)
    counts = count_contributing(make("multi_similarity"), S)["i2t"]
    assert (counts["c_q"], counts["c_b"], counts["c_0"]) == (1.0, 1, 2)


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="row i must match row i"):
        count_contributing(make("triplet"), scores(3, 4))
