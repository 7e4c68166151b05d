"""Cases small enough to work out by hand: vectors at angles on the unit circle."""

import math

import pytest
import torch

from allpairs.objectives import from_scores, make


def circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


# Both sides at 0° and 60°: positives 1, negatives 1/2, in both directions.
SIXTY = circle(0, 60), circle(0, 60)


@pytest.mark.parametrize(
    ("name", "arguments", "per_anchor"),
    [
        ("triplet", {"margin": 0.6}, 0.1),
        ("triplet", {"margin": 0.4}, 0.0),
        ("triplet_hn", {"margin": 0.6}, 0.1),
        ("triplet_hn", {"margin": 0.4}, 0.0),
        ("vlc", {"scale": 2 * math.log(3)}, math.log(4 / 3)),
        ("unified", {"margin": 0.5, "scale": 7.0}, math.log(2) / 7),
        ("unified", {"margin": 0.0, "scale": 2 * math.log(3)}, math.log(4 / 3) / (2 * math.log(3))),
    ],
)
def test_two_pairs_sixty_degrees_apart(name, arguments, per_anchor):
    assert make(name, **arguments)(*SIXTY).item() == pytest.approx(2 * per_anchor, rel=1e-12, abs=1e-12)
    assert make(name, **arguments, reduction="sum")(*SIXTY).item() == pytest.approx(
        4 * per_anchor, rel=1e-12, abs=1e-12
    )


def test_length_does_not_matter():
    queries, candidates = SIXTY
    assert make("triplet", margin=0.6)(3 * queries, 0.1 * candidates).item() == pytest.approx(0.2)


def test_one_triplet_hinge_and_who_gets_its_gradient():
    # Rows: 0.5+0.7−0.9 = 0.3 (row 0); row 1: 0.5+0.1−0.8 < 0. Columns: 0.5+0.1−0.9 < 0; column 1: 0.5+0.7−0.8 = 0.4.
    S = torch.tensor([[0.9, 0.7], [0.1, 0.8]], dtype=torch.float64, requires_grad=True)
    for name in ("triplet", "triplet_hn"):
        loss = from_scores(make(name, margin=0.5, reduction="sum"), S)
        assert loss.item() == pytest.approx(0.7)
        (gradient,) = torch.autograd.grad(loss, S)
        assert gradient.tolist() == [[-1, 2], [0, -1]]


def test_hardest_negative_of_each_direction_alone_counts():
    S = torch.tensor([[0.5, 0.4, 0.6], [0.3, 0.5, 0.2], [0.45, 0.1, 0.5]], dtype=torch.float64, requires_grad=True)
    # Rows: hardest 0.6, 0.3, 0.45; columns: 0.45, 0.4, 0.6; every positive is 0.5 and the margin 0.2.
    loss = from_scores(make("triplet_hn", margin=0.2, reduction="sum"), S)
    assert loss.item() == pytest.approx(0.3 + 0.0 + 0.15 + 0.15 + 0.1 + 0.3)
    (gradient,) = torch.autograd.grad(loss, S)
    assert gradient.tolist() == [[-2, 1, 2], [0, -1, 0], [2, 0, -2]]


def test_on_a_tie_the_lowest_index_is_the_hardest():
    S = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]], requires_grad=True)
    objective = make("triplet_hn", margin=0.2, reduction="sum")
    (gradient,) = torch.autograd.grad(from_scores(objective, S), S)
    # Rows pick columns 1, 0, 0; columns pick rows 1, 0, 0.
    assert gradient.tolist() == [[-2, 2, 1], [2, -2, 0], [1, 0, -2]]
    # The same scores from embeddings: q_i·c_j = 1/2 off the diagonal, 0 on it.
    h = math.sqrt(0.5)
    queries = torch.tensor([[0, h, h], [h, 0, h], [h, h, 0]])
    weights = objective.pair_weights(queries, torch.eye(3))
    assert weights.tolist() == [[-2, 2, 1], [2, -2, 0], [1, 0, -2]]


def test_same_instance_off_the_diagonal_is_no_negative():
    # Pairs 0 and 1 show one image: only pair 2 is their negative. Its hinges: 0.2+0.8−0.9 (rows 0, 1 and columns).
    S = torch.tensor([[0.9, 0.95, 0.8], [0.95, 0.9, 0.8], [0.8, 0.8, 0.9]], dtype=torch.float64)
    ids = torch.tensor([4, 4, 9])
    assert from_scores(make("triplet", margin=0.2, reduction="sum"), S, query_ids=ids).item() == pytest.approx(0.8)
    assert from_scores(make("triplet_hn", margin=0.2, reduction="sum"), S, query_ids=ids).item() == pytest.approx(0.6)
    assert from_scores(make("vlc", scale=10 * math.log(2)), S, query_ids=ids).item() == pytest.approx(
        2 / 3 * (2 * math.log(1.5) + math.log(2))
    )


def test_either_side_of_the_ids_stands_for_both():
    queries, candidates = circle(0, 10, 90), circle(5, 15, 100)
    ids = torch.tensor([4, 4, 9], dtype=torch.int32)
    objective = make("vlc")
    both = objective(queries, candidates, query_ids=ids, candidate_ids=ids)
    assert torch.equal(both, objective(queries, candidates, query_ids=ids))
    assert torch.equal(both, objective(queries, candidates, candidate_ids=ids))
    assert both != objective(queries, candidates)
