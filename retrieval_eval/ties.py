"""From counts to ranks, recall and average precision, with ties three ways: optimistic, expected, pessimistic.

*Expected* is the exact mean over all orders of the tied items, each equally likely. A collapsed model, whose scores are
all equal, so shows R@1 = P/G for P positives among G gallery items: chance, and never 100 %.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from retrieval_eval.counting import Counts
from retrieval_eval.positives import Positives
from retrieval_eval.whole_ranking import Treatment

TREATMENTS: tuple[Treatment, ...] = ("optimistic", "expected", "pessimistic")
LEVELS = 5  # the best positives of a query that AP@5 can see


@dataclass(frozen=True, eq=False)
class Levels:
    """Counts for the best L positives of each query, best first; entries past a query's positives are all zero."""

    score: np.ndarray  # [N, L] float32, -inf past the last positive
    greater: np.ndarray  # [N, L] int64
    equal: np.ndarray  # [N, L] int64
    equal_positives: np.ndarray  # [N, L] int64

    @classmethod
    def of(cls, positives: Positives, counts: Counts) -> "Levels":
        """Take the best five positives of each query, or as many as any query has."""
        owners = positives.owners
        order = np.lexsort((-counts.score, owners))  # by query, best first; owners stay sorted
        level = np.arange(len(order)) - positives.offsets[owners]
        kept = level < LEVELS
        shape = (len(positives), min(LEVELS, int(positives.counts.max())))

        def best(values: np.ndarray, past: float = 0) -> np.ndarray:
            found = np.full(shape, past, values.dtype)
            found[owners[kept], level[kept]] = values[order[kept]]
            return found

        score = best(counts.score, -np.inf)
        return cls(score, best(counts.greater), best(counts.equal), best(counts.equal_positives))


@dataclass(frozen=True, eq=False)
class Ranks:
    """Rank of each query's best positive, 1 is best: ``1 + #{gallery items that score higher}``, [N] each.

    The best positives tie with `negatives` other items at the same score; there are `positives` of them.
    """

    score: np.ndarray  # [N] float32, of the best positive
    greater: np.ndarray  # [N] items above the best positive
    positives: np.ndarray  # [N] positives at its score, itself included
    negatives: np.ndarray  # [N] other items at its score

    @classmethod
    def of(cls, levels: Levels) -> "Ranks":
        """Take the ranks from the counts of the first level."""
        tied = levels.equal_positives[:, 0]
        return cls(levels.score[:, 0], levels.greater[:, 0], tied, levels.equal[:, 0] - tied)

    @cached_property
    def optimistic(self) -> np.ndarray:
        """Ranks with the positive first among its ties, [N] int64."""
        return self.greater + 1

    @cached_property
    def pessimistic(self) -> np.ndarray:
        """Ranks with all tied negatives first, [N] int64."""
        return self.greater + self.negatives + 1

    @cached_property
    def expected(self) -> np.ndarray:
        """Mean rank over all orders of the ties, [N] float64."""
        # The first of p positives among p + n items in random order is on average at (p + n + 1) / (p + 1).
        return self.greater + (self.positives + self.negatives + 1) / (self.positives + 1)

    @property
    def tied(self) -> np.ndarray:
        """Which queries' ranks depend on the order of ties, [N] bool."""
        return self.negatives > 0

    def hits(self, k: int) -> dict[str, np.ndarray]:
        """Per query, whether a positive is in the top k: 0 or 1, ``expected`` its probability; [N] float64."""
        return {
            "optimistic": (self.optimistic <= k).astype(np.float64),
            "expected": self._hit_probability(k),
            "pessimistic": (self.pessimistic <= k).astype(np.float64),
        }

    def _hit_probability(self, k: int) -> np.ndarray:
        # Of the tied items `room` lie inside the top k: sum over them the chance that this is the first positive.
        room = np.clip(k - self.greater, 0, self.negatives + 1)
        # With more room than negatives a positive must be inside.
        probability = (room > self.negatives).astype(np.float64)
        open_ = (room > 0) & (probability == 0)
        room, p, n = room[open_], self.positives[open_], self.negatives[open_]
        none_yet, found = np.ones(len(room)), np.zeros(len(room))
        for j in range(room.max(initial=0)):
            left = np.maximum(p + n - j, 1)
            found += np.where(j < room, none_yet * p / left, 0.0)
            none_yet *= np.maximum(n - j, 0) / left
        probability[open_] = found
        return probability


def average_precisions(levels: Levels, positives: np.ndarray) -> dict[Treatment, dict[str, np.ndarray]]:
    """Return per treatment of ties AP@5 per query, [N] each: the precisions at the hits in the top five, divided.

    ``map5`` divides their sum by the hits found (0 without one), ``map_cut5`` by all `positives` of the query, [N].

    Every pattern of hits and misses over the five places is weighed by its probability under a random order of the
    ties; ``optimistic`` and ``pessimistic`` are the largest and smallest value that some order reaches. (Positives
    first need not be best for ``map5``: it divides by the hits found, so that a late hit lowers it.)
    """
    # Only where positives tie with others inside the top five does any order matter: elsewhere the ranks tell.
    mixed = ((levels.equal > levels.equal_positives) & (levels.greater < LEVELS)).any(1)
    untied = _average_precisions_untied(levels, positives)
    if not mixed.any():
        return dict.fromkeys(TREATMENTS, untied)
    chosen = Levels(*(each[mixed] for each in (levels.score, levels.greater, levels.equal, levels.equal_positives)))
    found: dict[Treatment, dict[str, np.ndarray]] = {}
    for treatment, of_names in _average_precisions_tied(chosen, positives[mixed]).items():
        found[treatment] = {name: values.copy() for name, values in untied.items()}
        for name, values in of_names.items():
            found[treatment][name][mixed] = values
    return found


def _average_precisions_untied(levels: Levels, positives: np.ndarray) -> dict[str, np.ndarray]:
    total, hits = np.zeros(len(levels.greater)), np.zeros(len(levels.greater), np.int64)
    within = np.zeros_like(hits)  # positives of the same score before this one
    for level in range(levels.greater.shape[1]):
        greater, there = levels.greater[:, level], levels.equal_positives[:, level] > 0
        within = np.where(greater == levels.greater[:, level - 1], within + 1, 0) if level else within
        rank = greater + within + 1
        hit = there & (rank <= LEVELS)
        total += np.where(hit, (level + 1) / rank, 0)
        hits += hit
    return {"map5": total / np.maximum(hits, 1), "map_cut5": total / positives}


def _average_precisions_tied(levels: Levels, number: np.ndarray) -> dict[Treatment, dict[str, np.ndarray]]:
    rows = len(levels.greater)
    # Where the block of ties that fills each place starts; a negative number of its own where it has no positives.
    start = np.tile(-1 - np.arange(LEVELS), (rows, 1))  # [N, 5]
    size, positives = np.ones((rows, LEVELS)), np.zeros((rows, LEVELS))
    for place in range(LEVELS):
        for level in range(levels.greater.shape[1]):
            first, equal = levels.greater[:, level], levels.equal[:, level]
            inside = (first <= place) & (place < first + equal)
            start[inside, place] = first[inside]
            size[inside, place] = equal[inside]
            positives[inside, place] = levels.equal_positives[inside, level]

    names = ("map5", "map_cut5")
    expected = {name: np.zeros(rows) for name in names}
    highest = {name: np.zeros(rows) for name in names}
    lowest = {name: np.ones(rows) for name in names}
    for pattern in product((0, 1), repeat=LEVELS):
        probability = np.ones(rows)
        for place, hit in enumerate(pattern):
            same_block = start[:, :place] == start[:, place, None]
            drawn, hits = same_block.sum(1), same_block @ np.array(pattern[:place])
            chance = (positives[:, place] - hits) / (size[:, place] - drawn)
            probability *= chance if hit else 1 - chance
        total = sum((1 + sum(pattern[:place])) / (1 + place) for place, hit in enumerate(pattern) if hit)
        possible = probability > 0
        for name, value in (("map5", np.full(rows, total / max(1, sum(pattern)))), ("map_cut5", total / number)):
            expected[name] += probability * value
            highest[name][possible] = np.maximum(highest[name], value)[possible]
            lowest[name][possible] = np.minimum(lowest[name], value)[possible]
    return {"optimistic": highest, "expected": expected, "pessimistic": lowest}
