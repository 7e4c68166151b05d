"""Ties against the enumeration of every order of the gallery."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_eval import evaluate


def by_enumeration(scores, right):
    """Sort by score under every permutation of the gallery as the order of ties; list what each gives."""
    outcomes = []
    for order in permutations(range(len(scores))):
        ranking = sorted(order, key=lambda g: -scores[g])  # stable: equal scores stay in the permutation's order
        hits = [g in right for g in ranking]
        places = [place for place, hit in enumerate(hits[:5], start=1) if hit]
        total = sum(sum(hits[:place]) / place for place in places)
        outcomes.append((1 + hits.index(True), total / max(1, len(places)), total / len(right)))
    return np.array(outcomes)


def check(scores, right):
    gallery = np.array(scores, float)[:, None]
    report = evaluate(np.ones((1, 1)), gallery, positives=[right], ks=(1, 2, 3, 5, 10), both_directions=False)
    ranks, *precisions = by_enumeration(scores, right).T
    for k in report.ks:
        hit = 100.0 * (ranks <= k)
        assert report.metrics[f"i2t/r{k}"] == pytest.approx(hit.mean(), abs=1e-10)
        assert report.ties["optimistic"][f"i2t/r{k}"] == hit.max()
        assert report.ties["pessimistic"][f"i2t/r{k}"] == hit.min()
    assert report.metrics["i2t/mean_rank"] == pytest.approx(ranks.mean(), abs=1e-10)
    assert report.ties["optimistic"]["i2t/mean_rank"] == ranks.min()
    assert report.ties["pessimistic"]["i2t/mean_rank"] == ranks.max()
    for name, values in zip(("i2t/map5", "i2t/map_cut5"), precisions, strict=True):
        assert report.metrics[name] == pytest.approx(values.mean(), abs=1e-12)
        assert report.ties["optimistic"][name] == pytest.approx(values.max(), abs=1e-12)
        assert report.ties["pessimistic"][name] == pytest.approx(values.min(), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
def test_equals_the_mean_over_all_orders(scores, data):
    right = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))
    check(scores, right)


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ([1] * 7, [0]),
        ([1] * 7, [0, 1, 2]),
        ([2, 1, 1, 1, 1, 1, 1], [0, 1, 2]),  # a block that reaches over the fifth place
        ([2, 2, 1, 1, 0, 0, 0], [1, 2, 5, 6]),  # three blocks, each mixed
        ([3, 2, 2, 2, 1, 1, 1], [0, 4]),  # a late hit lowers the measure: right first is not best here
    ],
)
def test_blocks_over_the_cut(scores, right):
    check(scores, right)
