"""Counts of every positive and the metrics of whole rankings, against float64 loops, every order, and trec_eval."""

import math
from itertools import permutations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_eval import counting, evaluate

NAMES = ("mrr", "ndcg", "r_precision", "map_r")


def of_a_ranking(hits):
    """The four measures of one order of the gallery, by their definitions; `hits` says which places hold positives."""
    number = sum(hits)
    places = [place for place, hit in enumerate(hits, start=1) if hit]
    ideal = sum(1 / math.log2(1 + place) for place in range(1, number + 1))
    return {
        "mrr": 1 / places[0],
        "ndcg": sum(1 / math.log2(1 + place) for place in places) / ideal,
        "r_precision": sum(place <= number for place in places) / number,
        "map_r": sum((n + 1) / place for n, place in enumerate(places) if place <= number) / number,
    }


def in_every_order(scores, right):
    rankings = [sorted(order, key=lambda g: -scores[g]) for order in permutations(range(len(scores)))]
    outcomes = [of_a_ranking([g in right for g in ranking]) for ranking in rankings]
    return {name: [outcome[name] for outcome in outcomes] for name in NAMES}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
def test_equals_every_order_of_the_ties(scores, data):
    right = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))
    gallery = np.array(scores, float)[:, None]
    report = evaluate(np.ones((1, 1)), gallery, positives=[right], both_directions=False)
    for name, values in in_every_order(scores, right).items():
        assert report.metrics[f"i2t/{name}"] == pytest.approx(np.mean(values), abs=1e-12)
        assert report.ties["optimistic"][f"i2t/{name}"] == pytest.approx(max(values), abs=1e-12)
        assert report.ties["pessimistic"][f"i2t/{name}"] == pytest.approx(min(values), abs=1e-12)


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
@given(problems(), st.sampled_from([1, 2, 3, 5, 1024]), st.sampled_from([1, 3, 1000]))
def test_counts_equal_float64_loops(problem, tile, sort_from):
    queries, gallery, positives = problem
    sides = {
        "i2t": (queries @ gallery.T, positives),
        "t2i": (gallery @ queries.T, [[q for q, row in enumerate(positives) if g in row] for g in range(len(gallery))]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "SORT_FROM", sort_from)  # rows with many positives are sorted: the same counts
        report = evaluate(queries, gallery, positives=positives, tile=tile)
    for direction, (scores, right) in sides.items():
        pairs = [(q, g) for q, row in enumerate(right) for g in sorted(row)]
        counts = report.counts[direction]
        assert report.positives[direction].indices.tolist() == [g for _, g in pairs]
        assert counts.score.tolist() == [scores[q, g] for q, g in pairs]
        assert counts.greater.tolist() == [(scores[q] > scores[q, g]).sum() for q, g in pairs]
        assert counts.equal.tolist() == [(scores[q] == scores[q, g]).sum() for q, g in pairs]
        assert counts.equal_positives.tolist() == [(scores[q][right[q]] == scores[q, g]).sum() for q, g in pairs]


def test_per_query_values_average_to_the_metrics():
    rng = np.random.default_rng(1)
    ids = np.concatenate([np.arange(30), rng.integers(0, 30, 50)])
    report = evaluate(rng.integers(-2, 3, (30, 4)), rng.integers(-2, 3, (80, 4)), np.arange(30), ids, ks=(1, 3, 5, 10))
    for direction, values in report.per_query.items():
        assert set(values) == {"r1", "r3", "r5", "r10", "rank", "map5", "map_cut5", *NAMES}
        for name, each in values.items():
            assert each.shape == (report.queries(direction),)
            assert each.dtype == np.float64
            measured = report.metrics[f"{direction}/{'mean_rank' if name == 'rank' else name}"]
            assert measured == pytest.approx(each.mean(), abs=1e-12)
        assert report.metrics[f"{direction}/median_rank"] == np.median(values["rank"])


@pytest.mark.parametrize("captions", [1, 4])
def test_collapsed_embeddings_show_chance(captions):
    images = 200
    gallery = images * captions
    one = np.random.default_rng(0).normal(size=(1, 33))
    report = evaluate(
        np.repeat(one, images, 0), np.repeat(one, gallery, 0), range(images), np.repeat(range(images), captions)
    )
    # With every order as likely, a place holds a positive with probability captions/gallery.
    chance = captions / gallery
    assert report.metrics["i2t/r_precision"] == pytest.approx(chance)
    assert report.metrics["t2i/mrr"] == pytest.approx(sum(1 / rank for rank in range(1, images + 1)) / images)
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, captions + 1))
    assert report.metrics["i2t/ndcg"] == pytest.approx(
        chance * sum(1 / math.log2(1 + rank) for rank in range(1, gallery + 1)) / ideal
    )
    assert report.ties["optimistic"]["i2t/map_r"] == report.ties["optimistic"]["t2i/ndcg"] == 1


def test_perfect_rankings_are_exactly_one():
    report = evaluate(np.eye(40), np.repeat(np.eye(40), 7, 0), range(40), np.repeat(range(40), 7))
    assert {report.metrics[f"{direction}/{name}"] for direction in ("i2t", "t2i") for name in NAMES} == {1.0}


def test_many_positives_are_sorted_to_the_same_counts(monkeypatch):
    rng = np.random.default_rng(2)
    queries, gallery = rng.normal(size=(50, 24)), rng.normal(size=(700, 24))
    gallery[350:] = gallery[:350]  # every score twice
    positives = [sorted(rng.choice(700, size, replace=False).tolist()) for size in rng.integers(1, 600, 50)]
    arguments = {"positives": positives, "both_directions": False, "tile": 128}
    plain = evaluate(queries, gallery, **arguments).counts["i2t"]
    monkeypatch.setattr(counting, "SORT_FROM", 10**6)
    compared = evaluate(queries, gallery, **arguments).counts["i2t"]
    for name in ("score", "greater", "equal", "equal_positives"):
        assert (getattr(plain, name) == getattr(compared, name)).all()
    assert (plain.equal >= 2).all()


def test_trec_eval_agrees():
    rng = np.random.default_rng(3)
    queries, ids = rng.normal(size=(60, 12)), np.concatenate([np.arange(60), rng.integers(0, 60, 240)])
    gallery = queries[ids] + 2 * rng.normal(size=(300, 12))
    report = evaluate(queries, gallery, np.arange(60), ids, both_directions=False)
    scores = queries @ gallery.T
    judged = {str(q): {str(g): 1 for g in np.flatnonzero(ids == q)} for q in range(60)}
    run = {str(q): {str(g): float(scores[q, g]) for g in range(300)} for q in range(60)}
    found = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank", "ndcg", "Rprec", "success", "map_cut_5"}).evaluate(
        run
    )
    ours = report.per_query["i2t"]
    for theirs, name in (("recip_rank", "mrr"), ("ndcg", "ndcg"), ("Rprec", "r_precision"), ("map_cut_5", "map_cut5")):
        assert [found[str(q)][theirs] for q in range(60)] == pytest.approx(ours[name].tolist(), abs=1e-12)
    assert [100 * found[str(q)]["success_5"] for q in range(60)] == ours["r5"].tolist()
