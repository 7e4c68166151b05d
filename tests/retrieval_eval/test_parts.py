"""What is measured in parts: directions that were measured apart, folds, and the cross-check of all."""

import numpy as np
import pytest

from retrieval_eval import evaluate
from retrieval_eval.cross_check import CrossCheck, cross_check
from retrieval_eval.parts import Part, Side, average, join
from retrieval_eval.uncertainty import clusters_of
from retrieval_eval.verify import verify


def part(seed, images=12):
    rng = np.random.default_rng(seed)
    X, ids = rng.normal(size=(images, 4)), rng.permutation(np.repeat(np.arange(images), 2))
    T = X[ids] + rng.normal(size=(len(ids), 4))
    T[3] = T[2]
    report = evaluate(X, T, np.arange(images), ids)
    i, t = Side("i", X, np.arange(images), np.arange(images), ""), Side("t", T, ids, np.arange(len(ids)), "")
    return Part(report, {"i2t": i, "t2i": t}, {"i2t": t, "t2i": i}, clusters_of(report))


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
    whole = part(0)
    forward, backward = whole.alone("i2t"), whole.alone("t2i")
    i, t = whole.asking["i2t"], whole.asking["t2i"]
    same(forward, evaluate(i.embeddings, t.embeddings, i.ids, t.ids, both_directions=False))
    same(join(forward, backward), whole.report)


def test_an_average_holds_all_queries():
    parts = [part(0), part(1)]
    found = average([each.report for each in parts])
    for name, value in found.metrics.items():
        assert value == pytest.approx(np.mean([each.report.metrics[name] for each in parts]))
    assert found.tied_queries["t2i"] == sum(each.report.tied_queries["t2i"] for each in parts)
    second = parts[1].report
    assert (found.positives["i2t"].of(12 + 5) == second.positives["i2t"].of(5)).all()
    assert (found.ranks["t2i"].score[24:] == second.ranks["t2i"].score).all()
    assert average([second]) is second


def test_the_cross_checks_of_all_parts_add_up(monkeypatch):
    parts = [part(0), part(1, images=36)]
    found = verify(parts)
    assert set(found.agreement.values()) == {100.0}
    assert found.agreement.keys() == cross_check(*parts[0].searches()[0]).agreement.keys()

    def tampered(report, queries, gallery):
        share = {12: 50.0, 36: 100.0}[len(queries)]
        return CrossCheck({"i2t/r1": share}, {"i2t/r1": 2}, {"i2t/r1": [7]}, "torch")

    monkeypatch.setattr("retrieval_eval.verify.cross_check", tampered)
    found = verify(parts)
    assert found.agreement == {"i2t/r1": 87.5}
    assert (found.rounding, found.differences) == ({"i2t/r1": 4}, {"i2t/r1": [7, 19]})
