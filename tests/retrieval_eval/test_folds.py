"""What is measured in folds: directions that were measured apart, folds, and the cross-check of all."""

import numpy as np
import pytest

from retrieval_eval import evaluate
from retrieval_eval.cross_check import CrossCheck, cross_check, verify
from retrieval_eval.folds import Gallery, MeasuredFold, average, join
from retrieval_eval.uncertainty import clusters_of


def fold(seed, images=12):
    rng = np.random.default_rng(seed)
    X, ids = rng.normal(size=(images, 4)), rng.permutation(np.repeat(np.arange(images), 2))
    T = X[ids] + rng.normal(size=(len(ids), 4))
    T[3] = T[2]
    report = evaluate(X, T, np.arange(images), ids)
    i, t = Gallery("i", X, np.arange(images), np.arange(images), ""), Gallery("t", T, ids, np.arange(len(ids)), "")
    return MeasuredFold(report, {"i2t": i, "t2i": t}, {"i2t": t, "t2i": i}, clusters_of(report))


def same(one, other):
    assert (one.metrics, one.ties, one.tied_queries, one.ks) == (
        other.metrics,
        other.ties,
        other.tied_queries,
        other.ks,
    )
    assert one.directions == other.directions
    for direction in one.directions:
        assert (one.positives[direction].indices == other.positives[direction].indices).all()
        assert (one.counts[direction].greater == other.counts[direction].greater).all()
        assert one.per_query[direction].keys() == other.per_query[direction].keys()


def test_apart_and_joined_again():
    whole = fold(0)
    forward, backward = whole.alone("i2t"), whole.alone("t2i")
    i, t = whole.asking["i2t"], whole.asking["t2i"]
    same(forward, evaluate(i.embeddings, t.embeddings, i.ids, t.ids, both_directions=False))
    same(join(forward, backward), whole.report)


def test_an_average_holds_all_queries():
    folds = [fold(0), fold(1)]
    found = average([each.report for each in folds])
    for name, value in found.metrics.items():
        assert value == pytest.approx(np.mean([each.report.metrics[name] for each in folds]))
    assert found.tied_queries["t2i"] == sum(each.report.tied_queries["t2i"] for each in folds)
    second = folds[1].report
    assert (found.positives["i2t"].of(12 + 5) == second.positives["i2t"].of(5)).all()
    assert (found.ranks["t2i"].score[24:] == second.ranks["t2i"].score).all()
    assert average([second]) is second


def test_the_cross_checks_of_all_parts_add_up(monkeypatch):
    folds = [fold(0), fold(1, images=36)]
    found = verify(folds)
    assert set(found.agreement.values()) == {100.0}
    assert found.agreement.keys() == cross_check(*folds[0].searches()[0]).agreement.keys()

    def tampered(report, queries, gallery):
        share = {12: 50.0, 36: 100.0}[len(queries)]
        return CrossCheck({"i2t/r1": share}, {"i2t/r1": 2}, {"i2t/r1": [7]}, "torch")

    monkeypatch.setattr("retrieval_eval.cross_check.cross_check", tampered)
    found = verify(folds)
    assert found.agreement == {"i2t/r1": 87.5}
    assert (found.rounding, found.differences) == ({"i2t/r1": 4}, {"i2t/r1": [7, 19]})
