"""Two methods, each trained with several seeds, on the same queries: is one better, beyond the luck of its seeds?

A metric of a side is the mean over its runs. Two things could have come out otherwise: the test images and the seeds.
Both are therefore drawn with replacement, each by itself and the images alike for all runs (the pigeonhole bootstrap of
crossed factors: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007). The interval holds the central
95 % of the differences; p is twice the share of them beyond zero. With n runs the spread over seeds is understated by
sqrt((n - 1) / n): three are few, five are better.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from allpairs.errors import UserError
from retrieval_eval.comparison import Change, Comparison
from retrieval_eval.folds import MeasuredFold, average
from retrieval_eval.uncertainty import RESAMPLES, SEED, bounds, number_of, replicates

# Shape suffixes: S runs of a side (its seeds), R resamples, N queries of a direction.

TEST = "two-sided share beyond zero of a bootstrap over whole images and over seeds"


def runs_of(side: str) -> list[Path]:
    """Return the runs that one side of a comparison names: a folder, or a pattern of several seeds' folders.

    Raises:
        UserError: the pattern matches no folder.
    """
    if Path(side).is_dir() or not any(sign in side for sign in "*?["):
        return [Path(side)]
    start = Path(Path(side).anchor)
    found = sorted(path for path in start.glob(str(Path(side).relative_to(start))) if path.is_dir())
    if not found:
        raise UserError(f"{side}: no folder matches; accepted: a run's folder, or a quoted pattern such as 'runs/a-*'")
    return found


def compare_seeds(
    first: Sequence[Sequence[MeasuredFold]],
    second: Sequence[Sequence[MeasuredFold]],
    names: tuple[str, str],
    *,
    seed: int = SEED,
) -> Comparison:
    """Compare the runs of two sides, each given by its folds of the same queries, which the caller has checked.

    Raises UserError if all queries belong to one image.
    """
    clusters = [fold.clusters for fold in first[0]]
    means, drawn, ranks = [], [], []
    for place, runs in enumerate((first, second)):
        reports = [[fold.report for fold in folds] for folds in runs]
        whole = [average(folds) for folds in reports]
        means.append({name: float(np.mean([one.metrics[name] for one in whole])) for name in whole[0].metrics})
        ranks.append(
            {way: np.mean([one.per_query[way]["rank"] for one in whole], axis=0) for way in whole[0].directions}
        )
        picks_RS = np.random.default_rng([seed, 2, place]).integers(len(runs), size=(RESAMPLES, len(runs)))
        by_run = [replicates(folds, clusters, seed=seed) for folds in reports]
        drawn.append(
            {
                name: np.take_along_axis(np.stack([run[name] for run in by_run], axis=1), picks_RS, axis=1).mean(axis=1)
                for name in by_run[0]
            }
        )
    differences = {name: drawn[1][name] - values for name, values in drawn[0].items()}
    intervals = bounds(differences)
    changes = {
        name: Change(value, means[1][name], means[1][name] - value, *intervals[name], _p(differences[name]))
        for name, value in means[0].items()
    }
    pairs = {way: (ranks[0][way], ranks[1][way]) for way in ranks[0]}
    count = sum(number_of(own) for own in clusters)
    return Comparison(names, changes, pairs, count, seeds=(len(first), len(second)), test=TEST)


def _p(differences: np.ndarray) -> float:
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (1 + beyond) / (1 + len(differences))))
