"""How the searched ranks compare with counted ones, on all queries or on a seeded sample."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retrieval_eval.metrics import METRICS, label, metrics_of
from retrieval_eval.report import Report

PAIRS = 1 << 30  # scores of queries with the gallery that are counted at most, per direction: seconds on two cores
FEWEST = 1000  # queries that are compared, whatever the gallery
SEED = 0


@dataclass(frozen=True)
class Agreement:
    """The engine ``faiss`` beside the exact count of the same queries."""

    by: str
    """What searched."""
    depth: int
    """Ranks up to it are told."""
    queries: dict[str, int]
    """Per direction how many queries were compared."""
    of: dict[str, int]
    """Per direction how many there are."""
    differences: dict[str, float]
    """Per metric, searched minus counted on the compared queries."""
    same_rank: dict[str, float]
    """Per direction the percent of the compared queries with one rank, or with both beyond what is told."""
    counted: dict[str, int]
    """Per direction the queries that were counted because a tie reaches beyond their list."""
    left_out: list[str]
    """Metrics that need every rank, by their names."""

    @property
    def engine(self) -> str:
        """What searched, how far down ranks are told, and what was counted because of ties."""
        tied = ", ".join(f"{count:,} {name}" for name, count in self.counted.items() if count)
        counted = f"; ties reach beyond those of {tied} queries, which are counted" if tied else ""
        return f"faiss ({self.by}), which tells ranks up to {self.depth}{counted}"

    @property
    def compared(self) -> str:
        """How the figures and the ranks of the compared queries differ from counted ones."""
        sizes = [
            f"{count:,}" if count == self.of[name] else f"{count:,} of {self.of[name]:,}"
            for name, count in self.queries.items()
        ]
        asked = " and ".join(f"{size} {name}" for size, name in zip(sizes, self.queries, strict=True))
        drawn = f" (drawn with seed {SEED})" if self.queries != self.of else ""
        differing = ", ".join(f"{label(name)} {value:+.4g}" for name, value in self.differences.items() if value)
        same = ", ".join(f"{name} {share:.2f} %" for name, share in self.same_rank.items())
        return (
            f"beside the exact count of {asked} queries{drawn} {differing or 'no metric'} differs; the same rank, or"
            f" beyond {self.depth} in both: {same}"
        )

    @property
    def missing(self) -> str:
        """The metrics that are left out, as people write them."""
        titles = {metric.name: metric.title for metric in METRICS}
        return f"{', '.join(titles[name] for name in self.left_out)}, which need every rank (--engine exact)"

    def lines(self) -> list[str]:
        """Say it for the terminal."""
        return [f"engine: {self.engine}", f"agreement: {self.compared}", f"left out: {self.missing}"]

    def record(self) -> dict[str, object]:
        """Return it for the record beside the metrics."""
        return {
            "name": "faiss",
            "by": self.by,
            "depth": self.depth,
            "counted_queries": self.counted,
            "compared_queries": self.queries,
            "seed": SEED,
            "differences": self.differences,
            "same_rank": self.same_rank,
            "left_out": self.left_out,
        }


def agreement(report: Report) -> Agreement | None:
    """Return how a report's searched ranks compare with counted ones; None for a report that was counted."""
    if not report.searched:
        return None
    searched = {
        name: {value: each[report.searched[name].compared] for value, each in values.items()}
        for name, values in report.per_query.items()
    }
    counted = {name: dict(found.exact) for name, found in report.searched.items()}
    means = [
        metrics_of({name: _means(values) for name, values in side.items()}, report.ks) for side in (searched, counted)
    ]
    first = next(iter(report.searched.values()))
    return Agreement(
        by=first.by,
        depth=min(found.depth for found in report.searched.values()),
        queries={name: len(found.compared) for name, found in report.searched.items()},
        of={name: report.queries(name) for name in report.directions},
        differences={name: value - means[1][name] for name, value in means[0].items()},
        same_rank={name: 100.0 * float(found.same_rank.mean()) for name, found in report.searched.items()},
        counted={name: found.counted for name, found in report.searched.items()},
        left_out=[metric.name for metric in METRICS if metric.every_rank],
    )


def sample(queries: int, gallery: int) -> np.ndarray:
    """Return the rows of the queries to compare, ascending: all of them while that is cheap."""
    size = max(FEWEST, PAIRS // gallery)
    if size >= queries:
        return np.arange(queries)
    return np.sort(np.random.default_rng(SEED).choice(queries, size, replace=False))


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(each.mean()) for name, each in values.items()}
