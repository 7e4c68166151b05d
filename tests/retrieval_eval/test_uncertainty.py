"""Bootstrap intervals: against a written-out resampling, their coverage, and what clustering changes."""

import numpy as np
import pytest

from allpairs.errors import UserError
from retrieval_eval import evaluate
from retrieval_eval.positives import Positives
from retrieval_eval.report import Report
from retrieval_eval.uncertainty import clusters_of, connected, intervals, replicates


def embedded(images=40, captions=5, noise=1.2, seed=0):
    """A report on images with their captions, some of them tied."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(images, 6))
    ids = rng.permutation(np.repeat(np.arange(images), captions))
    T = X[ids] + noise * rng.normal(size=(len(ids), 6))
    T[1] = T[0]
    return evaluate(X, T, np.arange(images), ids), ids


def one_way(hits, clusters):
    """A report on captions asking, with only what the bootstrap reads."""
    per_query = {"t2i": {"r1": 100.0 * hits, "rank": np.where(hits, 1.0, 2.0)}}
    return Report({}, {}, {"t2i": None}, {}, {}, (1,), {}, per_query), {"t2i": clusters}


def test_clusters_are_images_with_their_captions():
    report, ids = embedded()
    found = clusters_of(report)
    assert found["i2t"].tolist() == list(range(40))
    assert (found["t2i"] == ids).all()


def test_a_chain_of_shared_positives_is_one_cluster():
    lists = [[q, q + 1] for q in range(500)] + [[600], [601, 600]]
    queries, items = connected(Positives.from_lists(lists, 603))
    assert queries.tolist() == [0] * 500 + [1, 1]
    assert items[:501].tolist() == [0] * 501
    assert items[[501, 599, 600, 601, 602]].tolist() == [-1, -1, 1, 1, -1]


def test_equals_resampling_written_out():
    report, ids = embedded()
    drawn = replicates(report, resamples=20, seed=7)
    picks = np.random.default_rng([7, 0]).integers(40, size=(20, 40))
    for one, images in enumerate(picks):
        rows = {"i2t": images, "t2i": np.concatenate([np.flatnonzero(ids == image) for image in images])}
        expected = {}
        for direction, chosen in rows.items():
            values = {name: column[chosen] for name, column in report.per_query[direction].items()}
            ranks = values.pop("rank")
            recalls = [values[f"r{k}"].mean() for k in (1, 5, 10)]
            found = {name: column.mean() for name, column in values.items()} | {
                "median_rank": np.median(ranks),
                "mean_rank": ranks.mean(),
                "average_recall": np.mean(recalls),
            }
            expected |= {f"{direction}/{name}": value for name, value in found.items()}
            expected["rsum"] = expected.get("rsum", 0.0) + sum(recalls)
        assert {name: values[one] for name, values in drawn.items()} == pytest.approx(expected, rel=1e-12)
    assert set(drawn) == set(report.metrics)


def test_folds_are_averaged_draw_by_draw():
    first, second = embedded(seed=1)[0], embedded(images=30, seed=2)[0]
    both = replicates([first, second], resamples=50)
    alone = replicates(first, resamples=50)
    # The first fold draws as it would alone; the second one independently of it.
    other = {name: 2 * values - alone[name] for name, values in both.items()}
    assert np.allclose(np.mean(other["rsum"]), second.metrics["rsum"], atol=15)
    assert abs(np.corrcoef(other["rsum"], alone["rsum"])[0, 1]) < 0.4


def test_the_seed_decides_and_the_interval_holds_the_metric():
    report, _ = embedded()
    found = intervals(report)
    assert found == intervals(report)
    assert found != intervals(report, seed=1)
    for name, (low, high) in found.items():
        assert low <= report.metrics[name] <= high, name
    assert found["rsum"][1] - found["rsum"][0] > 10


def test_coverage_and_the_naive_interval():
    """Five captions of an image succeed together: the clustered interval covers the truth, the naive one does not."""
    rng = np.random.default_rng(3)
    covered, widths, trials = np.zeros(2), np.zeros(2), 400
    images = np.repeat(np.arange(100), 5)
    for _ in range(trials):
        easy = rng.beta(0.8, 1.2, size=100)  # the mean success is 0.4
        hits = rng.random(500) < easy[images]
        for kind, clusters in enumerate((images, np.arange(500))):
            report, own = one_way(hits, clusters)
            low, high = intervals(report, [own], resamples=300)["t2i/r1"]
            covered[kind] += low <= 40.0 <= high
            widths[kind] += high - low
    assert 0.92 <= covered[0] / trials <= 0.98
    assert covered[1] / trials < 0.88
    assert widths[0] > 1.3 * widths[1]


def test_one_cluster_is_refused():
    hits = np.array([True, False])
    report, own = one_way(hits, np.zeros(2, int))
    with pytest.raises(UserError, match="all queries are connected"):
        intervals(report, [own])
