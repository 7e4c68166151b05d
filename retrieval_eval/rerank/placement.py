"""Where the positives stand in a re-ranked list: inside the shortlist by the scorer, behind it by the first stage."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from retrieval_eval.inputs import blocks
from retrieval_eval.positives import Positives
from retrieval_eval.precision import exact_float32

# N queries, M gallery items, K items of a shortlist, P positive pairs, R queries of a strip.

STRIP = 2**24  # scores of R queries with the whole gallery, held together: 64 MiB


@dataclass(frozen=True, eq=False)
class Placed:
    """Counts per positive pair, [P] each, in the order of `Positives.indices`."""

    owners: np.ndarray
    reached: np.ndarray  # in the shortlist?
    score: np.ndarray  # float32, the scorer's where reached, else the first stage's
    greater: np.ndarray  # items ranked above
    equal: np.ndarray  # items level with it, itself included

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `greater` and `equal` if the scorer put every positive of the shortlist first, all level."""
        first = np.bincount(self.owners[self.reached], minlength=int(self.owners.max()) + 1)[self.owners]
        return np.where(self.reached, 0, self.greater), np.where(self.reached, first, self.equal)


def place(
    asking: torch.Tensor, answering: torch.Tensor, positives: Positives, found: np.ndarray, second: np.ndarray
) -> Placed:
    """Place the positives, given the shortlists `found` [N, K] and the scorer's scores `second` [N, K] of their items.

    `asking` [N, D] and `answering` [M, D] are the first stage, by which items behind the shortlist are ordered.
    """
    owners, k = positives.owners, found.shape[1]
    asked = owners * positives.gallery + positives.indices
    listed = (found + np.arange(len(found))[:, None] * positives.gallery).ravel()
    order = np.argsort(listed)
    at = order[np.minimum(np.searchsorted(listed, asked, sorter=order), len(order) - 1)]
    reached = listed[at] == asked
    score = second.ravel()[at]
    greater, equal = np.empty(len(asked), np.int64), np.empty(len(asked), np.int64)
    inside, outside = np.flatnonzero(reached), np.flatnonzero(~reached)
    for pairs in _cut(inside, STRIP // k):
        rivals = second[owners[pairs]]  # (pairs, K)
        greater[pairs] = (rivals > score[pairs, None]).sum(1)
        equal[pairs] = (rivals == score[pairs, None]).sum(1)
    for pairs, strip_RM, row in _strips(asking, answering, found, owners, outside):
        threshold = strip_RM[row, torch.from_numpy(positives.indices[pairs])]
        score[pairs] = threshold.numpy()
        for some in _cut(np.arange(len(pairs)), len(strip_RM)):
            rivals_RM = strip_RM[row[some]]
            greater[pairs[some]] = k + (rivals_RM > threshold[some, None]).sum(1).numpy()
            equal[pairs[some]] = (rivals_RM == threshold[some, None]).sum(1).numpy()
    return Placed(owners, reached, score, greater, equal)


def _strips(
    asking: torch.Tensor, answering: torch.Tensor, found: np.ndarray, owners: np.ndarray, missed: np.ndarray
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield missed pairs with their queries' first-stage scores [R, M], -inf in the shortlist, and their rows in it.

    One product gives a positive's score and its rivals': computed apart, they would differ in their last bits.
    """
    for queries in _cut(np.unique(owners[missed]), max(1, STRIP // len(answering))):
        pairs = missed[(owners[missed] >= queries[0]) & (owners[missed] <= queries[-1])]
        Q_RD = asking[torch.from_numpy(queries).to(asking.device)].to(torch.float32)
        strip_RM = torch.empty(len(queries), len(answering))
        with exact_float32(Q_RD.device):
            for start, block in blocks(answering):
                strip_RM[:, start : start + len(block)] = Q_RD @ block.to(Q_RD.device).T
        strip_RM.scatter_(1, torch.from_numpy(found[queries]), -torch.inf)
        yield pairs, strip_RM, torch.from_numpy(np.searchsorted(queries, owners[pairs]))


def _cut(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    step = max(1, size)
    for start in range(0, len(values), step):
        yield values[start : start + step]
