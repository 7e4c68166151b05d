"""How far a metric could move with other test images: bootstrap intervals over whole images.

The captions of one image succeed and fail together, so that treating them as independent makes intervals too narrow
(about ±1.4 points where ±2.0 is right, at 1,000 images of 5 captions). The unit that is drawn, with replacement, is
therefore the *cluster*: an image with all its captions; in general, queries that are connected through positives. Both
directions share each draw, so that RSUM's interval knows how they move together. Percentile intervals (Efron and
Tibshirani, An Introduction to the Bootstrap, ch. 13); a metric that no query contradicts (100 %) has no width.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from allpairs.errors import UserError
from retrieval_eval.metrics import metrics_of
from retrieval_eval.positives import Positives
from retrieval_eval.report import Report

# Shape suffixes: N queries of a direction, C clusters, R resamples of a block.

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
CELLS = 1 << 22  # numbers in a block of resamples: 32 MB, whatever the gallery's size

Clusters = Mapping[
    str, np.ndarray
]  # direction -> [N] cluster of each query, 0 to C-1, numbered alike in all directions
Intervals = dict[str, tuple[float, float]]


def intervals(
    reports: Report | Sequence[Report],
    clusters: Sequence[Clusters] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Intervals:
    """Return the 95 % interval (low, high) of every metric of a report, or of the average over the folds' reports.

    `clusters` says, report by report, what is drawn together, by default `clusters_of`. Raises UserError when all
    queries belong to one cluster: there is nothing to resample then.
    """
    return bounds(replicates(reports, clusters, resamples=resamples, seed=seed))


def replicates(
    reports: Report | Sequence[Report],
    clusters: Sequence[Clusters] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, np.ndarray]:
    """Return every metric [resamples] on resampled clusters; equal seeds and clusters draw the same ones."""
    folds = [reports] if isinstance(reports, Report) else list(reports)
    drawn = [
        _replicates(report, own, resamples, np.random.default_rng([seed, fold]))
        for fold, (report, own) in enumerate(zip(folds, clusters or map(clusters_of, folds), strict=True))
    ]
    return {name: np.mean([fold[name] for fold in drawn], axis=0) for name in drawn[0]}


def bounds(samples: Mapping[str, np.ndarray], level: float = LEVEL) -> Intervals:
    """Return the central `level` of each metric's replicates [R] as (low, high)."""
    tail = (1 - level) / 2
    return {name: tuple(np.quantile(values, (tail, 1 - tail)).tolist()) for name, values in samples.items()}


def clusters_of(report: Report) -> dict[str, np.ndarray]:
    """Return the cluster of each query per direction, [N] each: queries connected through positives share one.

    An image and its captions are one cluster, in both directions under the same number.
    """
    forward, *backward = report.directions
    asking, answering = connected(report.positives[forward])
    assert all(len(report.positives[name]) == len(answering) for name in backward), "not two directions of one gallery"
    return {forward: asking} | dict.fromkeys(backward, answering)


def connected(positives: Positives) -> tuple[np.ndarray, np.ndarray]:
    """Number the connected groups of queries and gallery items: [queries], and [gallery] (-1: an item of no query)."""
    owners, items = positives.owners, positives.indices
    group = np.arange(len(positives))
    none = len(positives)
    while True:
        # Each item takes the least group of its queries, each query the least of its items, then of its group's first.
        of_item = np.full(positives.gallery, none)
        np.minimum.at(of_item, items, group[owners])
        lower = group.copy()
        np.minimum.at(lower, owners, of_item[items])
        lower = lower[lower]
        if (lower == group).all():
            break
        group = lower
    numbers = np.full(none + 1, -1)
    numbers[np.unique(group)] = np.arange(len(np.unique(group)))
    return numbers[group], numbers[of_item]


def cluster_sums(values: np.ndarray, clusters: np.ndarray, count: int) -> np.ndarray:
    """Add up `values` [N] by cluster: [C]."""
    return np.bincount(clusters, weights=values, minlength=count)


def number_of(clusters: Clusters) -> int:
    """Return C; UserError if all queries are in one cluster."""
    count = 1 + max(int(own.max()) for own in clusters.values())
    if count < 2:
        raise UserError(
            "no intervals: all queries are connected through shared positives, so that nothing can be resampled"
            "; accepted: queries of at least two images"
        )
    return count


def _replicates(
    report: Report, clusters: Clusters, resamples: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    count = number_of(clusters)
    sums = {
        direction: {name: cluster_sums(values, clusters[direction], count) for name, values in per_query.items()}
        for direction, per_query in report.per_query.items()
    }
    sizes = {direction: np.bincount(own, minlength=count) for direction, own in clusters.items()}
    order = {
        direction: np.argsort(values["rank"], kind="stable")
        for direction, values in report.per_query.items()
        if not report.searched
    }
    widest = max(count, *(len(own) for own in clusters.values()))
    blocks = []
    for weights_RC in _draws(count, resamples, max(1, CELLS // widest), random):
        drawn = weights_RC.astype(np.float64)
        means = {
            direction: {name: drawn @ column / (drawn @ sizes[direction]) for name, column in columns.items()}
            for direction, columns in sums.items()
        }
        block = metrics_of(means, report.ks)
        for direction, rows in order.items():
            ranks = report.per_query[direction]["rank"][rows]
            block[f"{direction}/median_rank"] = _medians(ranks, weights_RC[:, clusters[direction][rows]])
        blocks.append(block)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _draws(clusters: int, resamples: int, block: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each of C clusters comes when C are drawn with replacement, block by block: [R, C]."""
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picks = random.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * clusters).reshape(rows, clusters)


def _medians(values: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Medians [R] of ascending values [N] that occur `weights` times: the mean of the two middle ones if even."""
    upto = np.cumsum(weights_RN, axis=1)
    total = upto[:, -1:]
    lower, upper = ((upto <= middle).sum(1) for middle in ((total - 1) // 2, total // 2))
    return (values[lower] + values[upper]) / 2
