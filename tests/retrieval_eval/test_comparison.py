"""Paired comparison: known p-values, their distribution under the null, medians, identical and different runs."""

from itertools import product

import numpy as np
import pytest

from retrieval_eval import evaluate
from retrieval_eval.comparison import _exchanged, compare
from retrieval_eval.folds import MeasuredFold
from retrieval_eval.report import Report
from retrieval_eval.uncertainty import clusters_of


def one_way(hits, clusters):
    values = {"r1": 100.0 * hits, "rank": np.where(hits, 1.0, 3.0)}
    metrics = {
        "t2i/r1": float(values["r1"].mean()),
        "t2i/median_rank": float(np.median(values["rank"])),
        "t2i/mean_rank": float(values["rank"].mean()),
    }
    report = Report(metrics, {}, {"t2i": None}, {}, {}, (1,), {}, {"t2i": values})
    return [MeasuredFold(report, {}, {}, {"t2i": clusters})]


def embedded(noise, seed=0, images=60):
    """Two models of the same images and captions differ in `noise` alone."""
    data, model = np.random.default_rng(5), np.random.default_rng(seed)
    X = data.normal(size=(images, 8))
    ids = data.permutation(np.repeat(np.arange(images), 3))
    report = evaluate(X, X[ids] + noise * model.normal(size=(len(ids), 8)), np.arange(images), ids)
    return [MeasuredFold(report, {}, {}, clusters_of(report))]


def test_a_p_value_known_by_counting():
    # Images' differences 3, 1, 1 captions of 5: of the 8 exchanges the sums ±5 and nothing else reach as far.
    first = np.zeros(15, bool)
    second = np.array([1, 1, 1, 0, 0] + [1, 0, 0, 0, 0] * 2, bool)
    images = np.repeat(np.arange(3), 5)
    found = compare(one_way(first, images), one_way(second, images), ("a", "b"), flips=20_000)
    sums = [abs(np.dot(signs, (3, 1, 1))) for signs in product((-1, 1), repeat=3)]
    exact = np.mean(np.array(sums) >= 5)
    assert found.changes["t2i/r1"].p == pytest.approx(exact, abs=0.01)  # three standard errors
    assert found.changes["t2i/r1"].difference == pytest.approx(100 / 3)


def test_p_is_uniform_under_the_null():
    rng = np.random.default_rng(2)
    images = np.repeat(np.arange(80), 5)
    p = []
    for trial in range(300):
        easy = rng.beta(1, 1, size=80)
        # Each model has its own luck with an image, shared by its captions.
        first, second = (rng.random(400) < np.clip(easy + rng.normal(0, 0.2, 80), 0, 1)[images] for _ in range(2))
        found = compare(one_way(first, images), one_way(second, images), ("a", "b"), flips=199, seed=trial)
        p.append(found.changes["t2i/r1"].p)
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        # Three standard errors of a share among 300.
        assert abs(np.mean(np.array(p) <= level) - level) <= 3 * np.sqrt(level * (1 - level) / 300) + 0.005


def test_identical_runs():
    found = compare(embedded(1.0), embedded(1.0), ("a", "b"), flips=500)
    for change in found.changes.values():
        assert (change.difference, change.low, change.high, change.p) == (0, 0, 0, 1)
    assert not len(found.wins("i2t"))
    assert not len(found.losses("t2i"))


def test_a_real_difference():
    worse, better = embedded(2.0), embedded(0.7, seed=1)
    found = compare(worse, better, ("worse", "better"))
    for name in ("rsum", "i2t/r1", "t2i/r1", "t2i/mrr"):
        change = found.changes[name]
        assert change.difference == better[0].report.metrics[name] - worse[0].report.metrics[name]
        assert 0 < change.low < change.difference < change.high
        assert change.p < 0.001
    back = compare(better, worse, ("better", "worse")).changes["rsum"]
    assert back.difference == -found.changes["rsum"].difference
    assert (back.low, back.high) == pytest.approx((-found.changes["rsum"].high, -found.changes["rsum"].low))
    assert back.p == found.changes["rsum"].p


def test_wins_and_losses_are_sorted_by_what_moved():
    found = compare(embedded(1.5), embedded(1.5, seed=1), ("a", "b"), flips=10)
    first, second = found.ranks["t2i"]
    wins, losses = found.wins("t2i"), found.losses("t2i")
    assert (np.diff((first - second)[wins]) <= 0).all()
    assert (np.diff((second - first)[losses]) <= 0).all()
    assert len(wins) + len(losses) + (first == second).sum() == 180
    counts = found.as_dict()["queries"]["t2i"]
    assert (counts["wins"], counts["losses"]) == (len(wins), len(losses))


@pytest.mark.parametrize("seed", range(3))
def test_exchanges_equal_the_ones_written_out(seed):
    (first,), (second,) = embedded(1.5), embedded(1.2, seed=seed + 1)
    found = _exchanged([(first.report, second.report, first.clusters)], 30, seed)
    swaps = np.random.default_rng([seed, 1, 0]).integers(2, size=(30, 60), dtype=np.int8).astype(bool)
    for one, swap in enumerate(swaps):
        expected = {"rsum": 0.0}
        for direction in ("i2t", "t2i"):
            swapped = swap[first.clusters[direction]]
            values = [
                {
                    name: np.where(swapped, other.per_query[direction][name], column)
                    for name, column in own.per_query[direction].items()
                }
                for own, other in ((first.report, second.report), (second.report, first.report))
            ]
            for name in values[0]:
                written = "mean_rank" if name == "rank" else name
                expected[f"{direction}/{written}"] = values[1][name].mean() - values[0][name].mean()
            medians = [np.median(value["rank"]) for value in values]
            expected[f"{direction}/median_rank"] = medians[1] - medians[0]
            recalls = [expected[f"{direction}/r{k}"] for k in (1, 5, 10)]
            expected[f"{direction}/average_recall"] = np.mean(recalls)
            expected["rsum"] += sum(recalls)
        assert {name: values[one] for name, values in found.items()} == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_folds_are_averaged():
    one, other = embedded(1.5), embedded(1.5, seed=4, images=50)
    better, same = embedded(0.8, seed=1), embedded(1.5, seed=4, images=50)
    found = compare(one + other, better + same, ("a", "b"), flips=200)
    alone = compare(one, better, ("a", "b"), flips=200)
    assert found.changes["rsum"].difference == pytest.approx(alone.changes["rsum"].difference / 2)
    assert found.clusters == 110
