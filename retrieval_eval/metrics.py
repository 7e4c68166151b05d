"""The registry of metrics: what each is called, how it is written, which way is better, and how it comes about.

Every table, export, page and summary draws from it. Metrics are keyed ``direction/name`` (``i2t/r1``); ``rsum`` stands
alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, Literal, TypeVar

import numpy as np

Value = TypeVar("Value", float, np.ndarray)

RECALLS = (1, 5, 10)
"""The k of the recalls that RSUM and the average recall are made of."""


@dataclass(frozen=True)
class Metric:
    """One metric of a direction, or RSUM."""

    name: str
    title: str
    """As people write it: ``R@1``, ``mAP@5``."""
    unit: Literal["percent", "place", "fraction"]
    value: str | None = None
    """The per-query value whose mean it is; None for what is combined, or a median."""
    bounded: bool = True
    """Whether a shortlist bounds it (`retrieval_eval.rerank`)."""
    every_rank: bool = False
    """Whether it needs the rank of every right answer, however far down: a search for the best K does not give it."""
    definition: str = ""
    """In words, where the field has more than one: it stands wherever the metric is printed or exported."""
    short: str = ""
    """The title where there is little room; empty: the title itself."""

    @property
    def decimals(self) -> int:
        """Decimals it is written with: three in 0..1, one for percents and places."""
        return 3 if self.unit == "fraction" else 1

    @property
    def heading(self) -> str:
        """The title of a narrow column."""
        return self.short or self.title

    @property
    def format(self) -> str:
        """How a page writes it: a printf format."""
        return "%g" if self.name == "median_rank" else f"%.{self.decimals}f"

    @property
    def is_recall(self) -> bool:
        """Whether it is R@k."""
        return self.value is not None and self.value == self.name and self.unit == "percent"

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""
        return self.unit != "place"


METRICS = (
    Metric("average_recall", "avg recall", "percent", short="avg."),
    Metric("median_rank", "median rank", "place", bounded=False, every_rank=True, short="median"),
    Metric("mean_rank", "mean rank", "place", "rank", bounded=False, every_rank=True, short="mean"),
    Metric(
        "map5", "mAP@5", "fraction", "map5",
        definition="sum of the precisions at the hits in the top 5, over the hits found there (COCOS)",
    ),
    Metric(
        "map_cut5", "mAP@5 (trec)", "fraction", "map_cut5",
        definition="sum of the precisions at the hits in the top 5, over all the query's right answers (trec_eval)",
    ),
    Metric("mrr", "MRR", "fraction", "mrr", every_rank=True),
    Metric("ndcg", "nDCG", "fraction", "ndcg", every_rank=True),
    Metric("r_precision", "R-Precision", "fraction", "r_precision", every_rank=True, short="R-Prec."),
    Metric(
        "map_r", "mAP@R", "fraction", "map_r", every_rank=True,
        definition="sum of the precisions at the hits in the top R, over R, the query's right answers",
    ),
)  # fmt: skip
"""The metrics of a direction behind its recalls, in the order of every table."""
RSUM = Metric("rsum", "RSUM", "percent")
_BY_NAME = {metric.name: metric for metric in (*METRICS, RSUM)}


def recall(k: int) -> Metric:
    """Return R@k."""
    return Metric(f"r{k}", f"R@{k}", "percent", f"r{k}")


def metric_of(name: str) -> Metric:
    """Return the metric of a key, with or without its direction: ``i2t/map5``, ``r10``; KeyError for no metric."""
    last = name.rsplit("/", maxsplit=1)[-1]
    if last[:1] == "r" and last[1:].isdecimal():
        return recall(int(last[1:]))
    return _BY_NAME[last]


def of_direction(ks: Sequence[int]) -> list[Metric]:
    """Return a direction's metrics in order: the recalls at `ks`, then the others that these allow."""
    others = [metric for metric in METRICS if metric.name != "average_recall" or set(RECALLS) <= set(ks)]
    return [*map(recall, ks), *others]


def definitions(names: Iterable[str]) -> dict[str, str]:
    """Return the definition of each metric among these keys that needs one, by the metric's name, in their order."""
    found = {metric.name: metric.definition for metric in map(metric_of, names)}
    return {name: definition for name, definition in found.items() if definition}


def notes(names: Iterable[str]) -> list[str]:
    """Return the same as lines below a table: ``mAP@5: sum of …``."""
    return [f"{metric_of(name).title}: {definition}" for name, definition in definitions(names).items()]


def label(name: str) -> str:
    """Return a key as people write it: ``i2t R@1``."""
    *direction, _ = name.split("/")
    return " ".join([*direction, metric_of(name).title])


def number(name: str, value: float, *, signed: bool = False) -> str:
    """Return a value with the decimals of its metric."""
    return f"{value:{'+' if signed else ''},.{metric_of(name).decimals}f}"


def is_better(name: str, difference: float) -> bool:
    """Return whether a change of the metric is for the better."""
    return difference != 0 and (difference > 0) == metric_of(name).higher_is_better


def metrics_of(means: Mapping[str, Mapping[str, Value]], ks: Sequence[int]) -> dict[str, Value]:
    """Return the metrics of all directions from the means of their per-query values (and, if given, the median rank).

    The only place where average recall and RSUM are combined. Values may be numbers, or arrays of one shape.
    """
    metrics: dict[str, Value] = {}
    for direction, of_values in means.items():
        for metric in of_direction(ks):
            if metric.name == "average_recall":
                metrics[f"{direction}/average_recall"] = _sum(of_values[f"r{k}"] for k in RECALLS) / len(RECALLS)
            elif (metric.value or metric.name) in of_values:
                metrics[f"{direction}/{metric.name}"] = of_values[metric.value or metric.name]
    with_rsum(metrics, list(means), ks)
    return metrics


def with_rsum(metrics: dict[str, Value], directions: Sequence[str], ks: Sequence[int]) -> dict[str, Value]:
    """Put RSUM into `metrics` where there are two directions and the recalls it is made of; return `metrics`."""
    if len(directions) > 1 and set(RECALLS) <= set(ks):
        metrics["rsum"] = _sum(metrics[f"{direction}/r{k}"] for direction in directions for k in RECALLS)
    return metrics


def _sum(values: Iterable[Value]) -> Any:
    found = list(values)
    # A sum of numbers that no order changes.
    return np.sum(found, axis=0) if isinstance(found[0], np.ndarray) else fsum(found)
