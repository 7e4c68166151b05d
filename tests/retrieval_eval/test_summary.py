"""The table of the terminal: every metric, its ±, and the line below."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from retrieval_eval import evaluate
from retrieval_eval.summary import half_width, label, number, table


def printed(*arguments):
    console = Console(file=io.StringIO(), width=80)
    console.print(table(*arguments))
    return console.file.getvalue()


def test_every_metric_and_half_of_its_interval():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 5))
    report = evaluate(X, X + rng.normal(size=(30, 5)), np.arange(30), np.arange(30))
    bounds = {name: (value - 0.25, value + 1.75) for name, value in report.metrics.items()}
    lines = {line[:14].strip(): line[14:].split() for line in printed(report, "a run", bounds).splitlines()}
    metrics = [name.removeprefix("i2t/") for name in report.metrics if name.startswith("i2t/")]
    assert len(metrics) == 12
    for metric in metrics:
        expected = []
        for name in (f"i2t/{metric}", f"t2i/{metric}"):
            expected += [number(name, report.metrics[name]), number(name, 1.0)]
        assert lines[label(metric)] == expected
    assert lines["gallery"] == ["30", "30"]
    assert f"RSUM {report.metrics['rsum']:.1f} ± 1.0 · no ties" in printed(report, "a run", bounds)
    assert "±" not in printed(report)


def test_ties_are_told_with_what_they_could_change():
    report = evaluate(np.ones((4, 2)), np.ones((4, 2)), np.arange(4), np.arange(4))
    text = " ".join(printed(report).split())
    assert "RSUM 450.0 · tied queries: i2t 4, t2i 4 · RSUM 400.0 to 600.0 by their order" in text
    unmoved = replace(report, ties=dict.fromkeys(report.ties, report.metrics))
    assert "by their order" not in " ".join(printed(unmoved).split())


@pytest.mark.parametrize(
    ("metric", "written", "value"),
    [
        ("i2t/r1", "i2t R@1", "+12.3"),
        ("v2t/r50", "v2t R@50", "+12.3"),
        ("t2i/r_precision", "t2i R-Precision", "+12.346"),
        ("map_r", "mAP@R", "+12.346"),
        ("rsum", "RSUM", "+12.3"),
    ],
)
def test_names_and_numbers(metric, written, value):
    assert label(metric) == written
    assert number(metric, 12.3456, signed=True) == value
    assert half_width((1.0, 2.0)) == 0.5
