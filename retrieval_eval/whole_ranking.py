"""Metrics from the ranks of every positive: reciprocal rank, nDCG, R-Precision and mAP@R, with ties three ways.

With R positives of a query, rel(r) whether the item at rank r is one, and P(r) the precision at r:
nDCG = sum of rel(r)/log2(1+r) over the whole ranking, by its largest value; R-Precision = P(R); mAP@R =
1/R · sum over r <= R of rel(r)·P(r) (Musgrave et al. 2020, A Metric Learning Reality Check, eq. 2, which divides by
R, as ``map_cut5`` does and ``map5`` does not); MRR takes the best positive. *Expected* is the exact mean over all
orders of tied items, each as likely: items of one score fill a block of ranks, and within it every rank holds a
positive with the same probability.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrieval_eval.counting import Counts
from retrieval_eval.positives import Positives

# N queries, P positive pairs, B blocks of equal scores that hold positives.

Treatment = Literal["optimistic", "expected", "pessimistic"]


def whole_ranking_metrics(positives: Positives, counts: Counts, treatment: Treatment) -> dict[str, np.ndarray]:
    """Return per metric the values of the queries, [N] float64, 0..1; every query has a positive."""
    order = np.lexsort((-counts.score, positives.owners))  # by query, best first
    owner, greater = positives.owners[order], counts.greater[order]
    number = positives.counts[owner]  # R of the pair's query
    nth = np.arange(len(order)) - positives.offsets[owner]  # positives before this one, [P]
    first = np.r_[True, (np.diff(owner) != 0) | (np.diff(greater) != 0)]  # of its block

    discounts = 1 / np.log2(2 + np.arange(positives.counts.max()))
    ideal = np.cumsum(discounts)[positives.counts - 1]  # [N]

    def per_query(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
        return np.bincount(owners, values, minlength=len(positives))

    if treatment == "expected":
        at = order[first]
        block = _Blocks(
            owner[first], number[first], nth[first], greater[first], counts.equal[at], counts.equal_positives[at]
        )
        found = {
            "mrr": block.reciprocal_of_first()[nth[first] == 0],
            "ndcg": per_query(block.gain(), block.owner) / ideal,
            "r_precision": per_query(block.hits_in_r(), block.owner) / positives.counts,
            "map_r": per_query(block.precisions_in_r(), block.owner) / positives.counts,
        }
    else:
        # Positives first in every block is best for all four, positives last worst.
        rank = greater + 1 + nth - nth[first][np.cumsum(first) - 1]
        if treatment == "pessimistic":
            rank += (counts.equal - counts.equal_positives)[order]
        inside = rank <= number
        found = {
            "mrr": 1 / rank[nth == 0],
            "ndcg": per_query(1 / np.log2(1 + rank), owner) / ideal,
            "r_precision": per_query(inside, owner) / positives.counts,
            "map_r": per_query(np.where(inside, (nth + 1) / rank, 0), owner) / positives.counts,
        }
    return {name: np.minimum(values, 1, out=values) for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Blocks of equal scores: ranks `above` + 1 to `above` + `size`, of which `hits` are positives, [B] each."""

    owner: np.ndarray  # the query
    number: np.ndarray  # its R
    earlier: np.ndarray  # its positives in better blocks
    above: np.ndarray
    size: np.ndarray
    hits: np.ndarray

    def reciprocal_of_first(self) -> np.ndarray:
        """Mean of 1 / the rank of a block's first positive."""
        found = 1 / (self.above + 1)
        mixed = np.flatnonzero(self.size > self.hits)
        # A collapsed model ties everything for everyone: equal blocks are worked out once.
        kinds, kind = np.unique(
            np.stack([self.above[mixed], self.size[mixed], self.hits[mixed]]), axis=1, return_inverse=True
        )
        values = []
        for above, size, hits in kinds.T:
            place = np.arange(size - hits + 1)  # negatives before the first positive
            stays = np.r_[1.0, (size - hits - place[:-1]) / (size - place[:-1])]
            chance = np.cumprod(stays) * hits / (size - place)
            values.append(np.sum(chance / (above + 1 + place)))
        found[mixed] = np.array(values)[kind.reshape(-1)] if values else 0
        return found

    def gain(self) -> np.ndarray:
        """Mean of the sum of 1 / log2(1 + rank) over a block's positives."""
        found = self.hits / np.log2(2 + self.above)
        large = self.size > 1
        if large.any():
            ranks = np.arange(1, int((self.above + self.size)[large].max()) + 1)
            sums = np.r_[0.0, np.cumsum(1 / np.log2(1 + ranks))]
            above, size = self.above[large], self.size[large]
            found[large] = self.hits[large] / size * (sums[above + size] - sums[above])
        return found

    def hits_in_r(self) -> np.ndarray:
        """Mean number of a block's positives among the first R ranks."""
        return self.hits * np.clip(self.number - self.above, 0, self.size) / self.size

    def precisions_in_r(self) -> np.ndarray:
        """Mean of the sum of P(r) over a block's positives among the first R ranks."""
        room = np.clip(self.number - self.above, 0, self.size)
        harmonic = np.r_[0.0, np.cumsum(1 / np.arange(1, int(self.number.max()) + 1))]
        last = np.minimum(self.above, self.number)  # a block below R adds nothing
        # Sum of 1/r over the block's ranks up to R; of a single rank without the rounding of a difference.
        reciprocals = np.where(self.size == 1, room / (self.above + 1), harmonic[last + room] - harmonic[last])
        # Given a positive at the t-th rank of the block, (t-1)(hits-1)/(size-1) others lie before it on average.
        others = (self.hits - 1) / np.maximum(self.size - 1, 1)
        before = room - (self.above + 1) * reciprocals  # sum of (t-1)/r
        return self.hits / self.size * ((self.earlier + 1) * reciprocals + others * before)
