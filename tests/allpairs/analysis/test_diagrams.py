"""Triplet diagrams: against the pair weights of two items, and GOAL's formulas written out."""

import math

import pytest
import torch

from allpairs.analysis.diagrams import axis, diagram, pair_weights, triplet_weights, weights_of_triplets
from allpairs.analysis.variants import all_variants, goal_variants
from allpairs.objectives import make, weights_from_scores

TRIPLETS = [(0.8, 0.2), (0.2, 0.8), (0.55, 0.45), (0.45, 0.5), (-0.3, 0.4), (0.1, -0.6), (0.95, 0.93)]


@pytest.mark.parametrize("variant", [v for v in all_variants() if v.name != "goal"], ids=lambda variant: variant.label)
def test_the_weights_are_those_of_two_items(variant):
    objective = variant.make()
    positive, negative = torch.tensor(TRIPLETS, dtype=torch.float64).T
    pull, push = weights_of_triplets(objective, positive, negative)
    assert pull.abs().max() > 0
    for index, (p, n) in enumerate(TRIPLETS):
        S = torch.tensor([[p, n], [n, p]], dtype=torch.float64)
        row = 2 * weights_from_scores(objective, S, direction="rows")[0]  # the mean over two anchors taken out
        assert -float(pull[index]) == pytest.approx(float(row[0]), rel=1e-9, abs=1e-12)
        assert float(push[index]) == pytest.approx(float(row[1]), rel=1e-9, abs=1e-12)


T = {
    "con": lambda p, n: float(0.2 + n - p > 0),
    "nca": lambda p, n: 1 / (1 + math.exp(10 * (p - n))),
    "cir": lambda p, n: 1 / (1 + math.exp(10 * (p * (2 - p) - n * n))),
}
PLUS = {
    "con": lambda p: 1.0,
    "lin": lambda p: 1 - p,
    "sig": lambda p: 1 / (1 + math.exp(2 * (p - 0.5))),
    "lin_ms": lambda p: 0.9 * (1 - p),
    "sig_ms": lambda p: 1 / (0.1 + math.exp(2 * (p - 0.5))),
}
MINUS = {
    "con": lambda n: 1.0,
    "lin": lambda n: n,
    "sig": lambda n: 1 / (1 + math.exp(-10 * (n - 0.5))),
    "lin_ms": lambda n: 1.1 * n,
    "sig_ms": lambda n: 1 / (0.1 + math.exp(-10 * (n - 0.5))),
}


@pytest.mark.parametrize("variant", goal_variants(), ids=lambda variant: variant.label)
def test_goal_is_t_times_p(variant):
    """G-Eq. 5, 7, 8 times Eq. 9 to 15, with m₊ = m₋ = 0.1 as in G Fig. 3."""
    triplet, pair = variant.arguments["triplet"], variant.arguments["pair"]
    drawn, similarity = diagram(variant, 14), axis(14).tolist()
    for row, n in enumerate(similarity):
        for column, p in enumerate(similarity):
            weight = T[triplet](p, n)
            assert float(drawn.pull[row, column]) == pytest.approx(weight * PLUS[pair](p), rel=1e-9)
            assert float(drawn.push[row, column]) == pytest.approx(weight * MINUS[pair](n), rel=1e-9)
    torch.testing.assert_close(drawn.magnitude, (drawn.pull**2 + drawn.push**2).sqrt())


def test_without_relative_terms_two_items_agree_with_goal():
    positive, negative = torch.tensor(TRIPLETS, dtype=torch.float64).T
    for pair in ("con", "lin", "sig"):
        objective = make("goal", triplet="nca", pair=pair)
        pull, push = weights_of_triplets(objective, positive, negative)
        for index, (p, n) in enumerate(TRIPLETS):
            row = (
                2
                * weights_from_scores(objective, torch.tensor([[p, n], [n, p]], dtype=torch.float64), direction="rows")[
                    0
                ]
            )
            assert (-float(pull[index]), float(push[index])) == pytest.approx(row.tolist(), rel=1e-9)


def test_the_parts_are_those_of_figures_2_and_3():
    similarity = axis(14).tolist()
    for name, weight in triplet_weights(14).items():
        assert weight[3].tolist() == pytest.approx([T[name](p, similarity[3]) for p in similarity])
    for name, (plus, minus) in pair_weights(14).items():
        assert plus.tolist() == pytest.approx([PLUS[name](s) for s in similarity])
        assert minus.tolist() == pytest.approx([MINUS[name](s) for s in similarity])
