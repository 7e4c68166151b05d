"""Exact ranks against hand-worked cases, float64 loops and chance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_eval import evaluate


def loops(queries, gallery, positives):
    """Ranks of the best positive by plain float64 arithmetic: (above, tied negatives, tied positives) per query."""
    found = []
    for q, row in enumerate(positives):
        scores = [math.fsum(float(a) * float(b) for a, b in zip(queries[q], item, strict=True)) for item in gallery]
        best = max(scores[g] for g in row)
        above = sum(score > best for score in scores)
        level = [g for g, score in enumerate(scores) if score == best]
        found.append((above, sum(g not in row for g in level), sum(g in row for g in level)))
    return found


def reversed_lists(positives, gallery):
    return [[q for q, row in enumerate(positives) if g in row] for g in range(gallery)]


def test_four_points_on_a_circle():
    def at(*degrees):
        angles = np.deg2rad(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], 1)

    # The queries at 0° and 90°; for the first, captions at 10° (its own), 20° (of the other), 90° (its own), 100°.
    report = evaluate(at(0, 90), at(10, 20, 85, 100), [7, 8], [7, 8, 7, 8])
    # 0°: 10° comes first. 90°: 85° (wrong) before 100° (right).
    assert report.ranks["i2t"].expected.tolist() == [1, 2]
    # 10° -> 0°; 20° -> 0° wrong, then 90°; 85° -> 90° wrong, then 0°; 100° -> 90°.
    assert report.ranks["t2i"].expected.tolist() == [1, 2, 2, 1]
    # AP@5 of 0°: hits at 1 and 3: (1 + 2/3)/2. Of 90°: order 85 100 20 10, hits at 2 and 3: (1/2 + 2/3)/2.
    assert report.metrics["i2t/map5"] == pytest.approx((5 / 6 + 7 / 12) / 2, abs=1e-15)
    assert report.metrics["i2t/map_cut5"] == report.metrics["i2t/map5"]  # all right answers lie in the top five
    assert {name: report.metrics[name] for name in ("i2t/r1", "i2t/r5", "i2t/r10", "t2i/r1", "t2i/r5", "t2i/r10")} == {
        "i2t/r1": 50, "i2t/r5": 100, "i2t/r10": 100, "t2i/r1": 50, "t2i/r5": 100, "t2i/r10": 100,
    }  # fmt: skip
    assert report.metrics["rsum"] == 500
    assert report.metrics["i2t/average_recall"] == pytest.approx(250 / 3)
    assert report.metrics["t2i/median_rank"] == 1.5
    assert report.metrics["t2i/mean_rank"] == 1.5


def test_two_definitions_of_average_precision_at_five():
    # Of eight captions at 1°, 2°, … those at 1, 3, 6 and 8 are right: hits at places 1 and 3 of the top five.
    angles = np.deg2rad(range(9))
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    report = evaluate(points[:1], points[1:], positives=[[0, 2, 5, 7]], both_directions=False)
    assert report.metrics["i2t/map5"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)  # over the two hits found
    assert report.metrics["i2t/map_cut5"] == pytest.approx((1 + 2 / 3) / 4, abs=1e-15)  # over the four there are
    assert report.per_query["i2t"]["map_cut5"] == pytest.approx([5 / 12])


def test_metric_names_are_the_projects():
    report = evaluate(np.eye(3), np.eye(3), [0, 1, 2], [0, 1, 2])
    one = {
        "r1",
        "r5",
        "r10",
        "average_recall",
        "median_rank",
        "mean_rank",
        "map5",
        "map_cut5",
        "mrr",
        "ndcg",
        "r_precision",
        "map_r",
    }
    assert set(report.metrics) == {f"{d}/{m}" for d in ("i2t", "t2i") for m in one} | {"rsum"}
    assert report.metrics["rsum"] == 600
    videos = evaluate(np.eye(3), np.eye(3), [0, 1, 2], [0, 1, 2], query_name="v", ks=(1, 2))
    assert "v2t/r2" in videos.metrics
    assert "t2v/r1" in videos.metrics
    assert "rsum" not in videos.metrics  # it is R@1 + R@5 + R@10 or nothing


def test_positions_mean_nothing():
    rng = np.random.default_rng(0)
    queries, gallery, ids = rng.normal(size=(40, 8)), rng.normal(size=(90, 8)), rng.integers(0, 40, 90)
    ids[:40] = np.arange(40)
    plain = evaluate(queries, gallery, np.arange(40), ids)
    order, turn = rng.permutation(90), rng.permutation(40)
    shuffled = evaluate(queries[turn], gallery[order], turn, ids[order])
    assert shuffled.metrics == plain.metrics
    assert (shuffled.ranks["t2i"].expected == plain.ranks["t2i"].expected[order]).all()
    assert (shuffled.ranks["i2t"].expected == plain.ranks["i2t"].expected[turn]).all()


@st.composite
def problems(draw):
    """Small integers in few dimensions (exact in float32, full of ties and duplicates) with ragged positives."""
    dim, n, m = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 14))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    queries = draw(st.lists(vector, min_size=n, max_size=n))
    gallery = draw(st.lists(vector, min_size=m, max_size=m))
    positives = [draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=m, unique=True)) for _ in range(n)]
    for g in range(m):  # every gallery item asks in the second direction, so it needs a query
        if not any(g in row for row in positives):
            positives[draw(st.integers(0, n - 1))].append(g)
    return np.array(queries, np.float64), np.array(gallery, np.float64), positives


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([1, 2, 3, 5, 1024]))
def test_equals_loops_in_float64(problem, tile):
    queries, gallery, positives = problem
    report = evaluate(queries, gallery, positives=positives, tile=tile)
    expected = {
        "i2t": loops(queries, gallery, positives),
        "t2i": loops(gallery, queries, reversed_lists(positives, len(gallery))),
    }
    for direction, rows in expected.items():
        ranks = report.ranks[direction]
        assert ranks.greater.tolist() == [row[0] for row in rows]
        assert ranks.negatives.tolist() == [row[1] for row in rows]
        assert ranks.positives.tolist() == [row[2] for row in rows]
        assert report.tied_queries[direction] == sum(row[1] > 0 for row in rows)
        low, high = report.ties["pessimistic"], report.ties["optimistic"]
        for name in (f"{direction}/r1", f"{direction}/r5", f"{direction}/map5"):
            assert low[name] - 1e-9 <= report.metrics[name] <= high[name] + 1e-9


@pytest.mark.parametrize("tile", [33, 64, 150, 1024])
def test_real_numbers_and_any_tile(tile):
    rng = np.random.default_rng(3)
    queries, ids = rng.normal(size=(150, 48)), rng.integers(0, 150, 420)
    ids[:150] = rng.permutation(150)
    gallery = queries[ids] + 2 * rng.normal(size=(420, 48))
    queries, gallery = queries.astype(np.float32), gallery.astype(np.float32)
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    right = np.arange(150)[:, None] == ids
    report = evaluate(queries, gallery, np.arange(150), ids, tile=tile)
    for direction, S, P in (("i2t", scores, right), ("t2i", scores.T, right.T)):
        order = np.argsort(-S, axis=1)
        first = np.take_along_axis(P, order, 1).argmax(1) + 1
        assert (report.ranks[direction].expected == first).all()
        assert report.tied_queries[direction] == 0


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("dim", [1, 7, 100, 512])
def test_collapsed_embeddings_show_chance(captions, dim):
    one = torch.randn(1, dim, generator=torch.Generator().manual_seed(dim))
    images = 300
    report = evaluate(
        one.expand(images, dim), one.expand(images * captions, dim), range(images), np.repeat(range(images), captions)
    )
    assert report.metrics["i2t/r1"] == pytest.approx(100 * captions / (images * captions), abs=1e-12)
    assert report.metrics["t2i/r1"] == pytest.approx(100 / images, abs=1e-12)
    assert report.metrics["t2i/r10"] == pytest.approx(1000 / images, abs=1e-12)
    assert report.metrics["t2i/mean_rank"] == pytest.approx((images + 1) / 2)
    assert report.ties["optimistic"]["rsum"] == 600
    assert report.ties["pessimistic"]["rsum"] == 0
    assert report.tied_queries == {"i2t": images, "t2i": images * captions}


def test_copies_of_the_right_answer_tie_exactly():
    # 100 random coordinates round differently in every order of addition: only one and the same product keeps the tie.
    rng = np.random.default_rng(5)
    gallery = rng.normal(size=(2500, 100)).astype(np.float32)
    copies = [3, 700, 1023, 1024, 2047, 2499]
    gallery[copies] = gallery[3]
    queries = gallery[:1] * 0.1 + 20 * gallery[3:4]
    report = evaluate(queries, gallery, positives=[[1023]], both_directions=False)
    ranks = report.ranks["i2t"]
    assert (ranks.optimistic[0], ranks.pessimistic[0], ranks.expected[0]) == (1, 6, 3.5)
    assert report.metrics["i2t/r1"] == pytest.approx(100 / 6)


def test_more_positives_than_are_ranked():
    rng = np.random.default_rng(6)
    queries, gallery = rng.integers(-3, 4, (5, 4)), rng.integers(-3, 4, (60, 4))
    positives = [sorted(rng.choice(60, 25, replace=False).tolist()) for _ in range(5)]
    report = evaluate(queries, gallery, positives=positives, both_directions=False, tile=16)
    expected = loops(queries, gallery, positives)
    assert report.ranks["i2t"].greater.tolist() == [row[0] for row in expected]
    assert report.ranks["i2t"].positives.tolist() == [row[2] for row in expected]


def test_scores_are_float32_whatever_is_switched_on():
    rng = torch.Generator().manual_seed(1)
    queries = torch.randn(200, 256, generator=rng)
    gallery = torch.nn.functional.normalize(queries + 4 * torch.randn(200, 256, generator=rng))
    plain = evaluate(queries, gallery, range(200), range(200))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            switched = evaluate(queries, gallery, range(200), range(200))
            assert (queries @ gallery.T).dtype == torch.bfloat16  # the caller's autocast goes on
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
    assert switched.metrics == plain.metrics
    assert (switched.ranks["i2t"].score == plain.ranks["i2t"].score).all()


def test_takes_tensors_that_require_gradients_and_half_precision_storage():
    queries = torch.eye(4, requires_grad=True)
    assert evaluate(queries, torch.eye(4, dtype=torch.bfloat16), range(4), torch.arange(4)).metrics["rsum"] == 600
