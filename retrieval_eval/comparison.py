"""Two models on the same queries: the difference of every metric, its interval, and whether chance could make it.

The interval: both models are measured on the same resampled images (`retrieval_eval.uncertainty`), so that what makes
an image hard for both cancels. The p-value: a permutation test with the image as its unit. If the models were equally
good, it would not matter which of the two answered the queries of an image; so for each image a coin decides whether
they are exchanged, many times over, and p is the share of the outcomes at least as far from zero as the one found, this
one included (Fisher's randomisation; for retrieval Smucker, Allan and Carterette, CIKM 2007). Flipping whole images is
valid for captions that are not independent, needs no normality, and exchanges both directions at once, for RSUM. The
p-values are two-sided, and not corrected for the number of metrics looked at.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrieval_eval.folds import MeasuredFold, average
from retrieval_eval.metrics import metrics_of
from retrieval_eval.report import Report
from retrieval_eval.uncertainty import (
    CELLS,
    RESAMPLES,
    SEED,
    Clusters,
    bounds,
    cluster_sums,
    number_of,
    replicates,
)

# Shape suffixes: N queries of a direction, C clusters, R flips of a block.

FLIPS = 10_000  # the least p is 1/10,001


@dataclass(frozen=True)
class Change:
    """One metric of two models; `difference` is the second's minus the first's."""

    first: float
    second: float
    difference: float
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    p: float
    """Two-sided, of the exchange of whole images between equal models."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the same queries."""

    names: tuple[str, str]
    changes: dict[str, Change]
    """By metric, in the reports' order."""
    ranks: dict[str, tuple[np.ndarray, np.ndarray]]
    """Per direction the expected rank of each query's best positive under both models, fold after fold: [N] float64."""
    clusters: int
    """Images that were drawn and exchanged."""
    seeds: tuple[int, int] = (1, 1)
    """Runs of each side."""
    test: str = "two-sided permutation of the models' labels over whole images"
    """Where p comes from."""

    def wins(self, direction: str) -> np.ndarray:
        """Rows of the queries that the second model ranks better, the largest gain in rank first."""
        first, second = self.ranks[direction]
        rows = np.flatnonzero(second < first)
        return rows[np.argsort((second - first)[rows], kind="stable")]

    def losses(self, direction: str) -> np.ndarray:
        """Rows of the queries that the second model ranks worse, the largest loss in rank first."""
        first, second = self.ranks[direction]
        rows = np.flatnonzero(second > first)
        return rows[np.argsort((first - second)[rows], kind="stable")]

    def as_dict(self) -> dict[str, Any]:
        """Return what a JSON file holds: the changes, and how many queries won, lost and stayed."""
        queries = {
            direction: {
                "wins": len(self.wins(direction)),
                "losses": len(self.losses(direction)),
                "same": len(first) - len(self.wins(direction)) - len(self.losses(direction)),
            }
            for direction, (first, _) in self.ranks.items()
        }
        return {
            "first": self.names[0],
            "second": self.names[1],
            "clusters": self.clusters,
            "resamples": RESAMPLES,
            "flips": FLIPS if self.seeds == (1, 1) else None,
            "seed": SEED,
            "test": self.test,
            "seeds": list(self.seeds),
            "metrics": {name: asdict(change) for name, change in self.changes.items()},
            "queries": queries,
        }


def compare(
    first: Sequence[MeasuredFold],
    second: Sequence[MeasuredFold],
    names: tuple[str, str],
    *,
    flips: int = FLIPS,
    seed: int = SEED,
) -> Comparison:
    """Compare two models on folds of the same queries, which the caller has checked; folds are averaged.

    Raises UserError if all queries belong to one image.
    """
    pairs = [(a.report, b.report, a.clusters) for a, b in zip(first, second, strict=True)]
    clusters = [own for *_, own in pairs]
    sides = [[fold.report for fold in folds] for folds in (first, second)]
    a, b = map(average, sides)
    drawn_a, drawn_b = (replicates(reports, clusters, seed=seed) for reports in sides)
    intervals = bounds({name: drawn_b[name] - values for name, values in drawn_a.items()})
    found = {name: b.metrics[name] - value for name, value in a.metrics.items()}
    chance = _exchanged(pairs, flips, seed)
    changes = {
        name: Change(value, b.metrics[name], found[name], *intervals[name], _p(found[name], chance[name]))
        for name, value in a.metrics.items()
    }
    ranks = {name: (a.per_query[name]["rank"], b.per_query[name]["rank"]) for name in a.directions}
    return Comparison(names, changes, ranks, sum(number_of(own) for own in clusters))


def _p(found: float, chance: np.ndarray) -> float:
    # Sums in another order round differently: what equals the finding up to that counts as equal to it.
    slack = 1e-9 * max(1.0, abs(found))
    return float((1 + (np.abs(chance) >= abs(found) - slack).sum()) / (1 + len(chance)))


def _exchanged(pairs: Sequence[tuple[Report, Report, Clusters]], flips: int, seed: int) -> dict[str, np.ndarray]:
    """Differences [flips] of every metric after whole images were exchanged at random, averaged over the folds."""
    folds = [_exchanged_once(*pair, flips, np.random.default_rng([seed, 1, fold])) for fold, pair in enumerate(pairs)]
    return {name: np.mean([fold[name] for fold in folds], axis=0) for name in folds[0]}


def _exchanged_once(
    first: Report, second: Report, clusters: Clusters, flips: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    count = number_of(clusters)
    change = {
        direction: {
            name: cluster_sums(second.per_query[direction][name] - values, clusters[direction], count) / len(values)
            for name, values in per_query.items()
        }
        for direction, per_query in first.per_query.items()
    }
    middles = {
        direction: _Middle(per_query["rank"], second.per_query[direction]["rank"], clusters[direction])
        for direction, per_query in first.per_query.items()
    }
    widest = max(count, *(middle.width for middle in middles.values()))
    block = max(1, CELLS // widest)
    blocks = []
    for start in range(0, flips, block):
        swap_RC = random.integers(2, size=(min(block, flips - start), count), dtype=np.int8).astype(bool)
        signs_RC = np.where(swap_RC, -1.0, 1.0)
        means = {
            direction: {name: signs_RC @ column for name, column in columns.items()}
            for direction, columns in change.items()
        }
        metrics = metrics_of(means, first.ks)
        for direction, middle in middles.items():
            metrics[f"{direction}/median_rank"] = middle.difference(swap_RC)
        blocks.append(metrics)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


class _Middle:
    """Medians of two models' ranks [N] after exchanges.

    However queries are exchanged, each model's median lies between the median of the lesser and that of the greater
    ranks: only queries that reach into that window are sorted again, the others are counted.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, clusters: np.ndarray) -> None:
        lesser, greater = np.sort(np.minimum(first, second)), np.sort(np.maximum(first, second))
        low, high = lesser[(len(first) - 1) // 2], greater[len(first) // 2]
        above = np.minimum(first, second) > high
        below = np.maximum(first, second) < low
        near = ~(above | below)
        self.places = [(len(first) - 1) // 2 - int(below.sum()), len(first) // 2 - int(below.sum())]
        self.first, self.second, self.clusters = first[near], second[near], clusters[near]

    @property
    def width(self) -> int:
        """Number of queries that are sorted."""
        return len(self.first)

    def difference(self, swap_RC: np.ndarray) -> np.ndarray:
        """Return the second model's median minus the first's, [R]."""
        swap_RN = swap_RC[:, self.clusters]
        medians = [
            np.partition(np.where(swap_RN, ranks, others), self.places, axis=1)[:, self.places].mean(1)
            for others, ranks in ((self.first, self.second), (self.second, self.first))
        ]
        return medians[1] - medians[0]
