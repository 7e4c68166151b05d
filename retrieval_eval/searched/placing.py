"""From the best K of each query to counts per right answer, and how far down they are known.

Legend: N queries, M gallery items, K places of a list, P right answers (pairs), S queries of a strip.
"""

from dataclasses import dataclass

import numpy as np
import torch

from retrieval_eval.counting import Counts
from retrieval_eval.inputs import BLOCK, blocks
from retrieval_eval.positives import Positives

STRIP = 1 << 14  # queries whose lists are worked on together: 13 MB per array of 101 places


@dataclass(frozen=True, eq=False)
class Placed:
    """Where the right answers stand."""

    counts: Counts
    """Per pair [P]. Of a right answer that no list places, `greater` is a lower bound, and ties are not known."""
    known: np.ndarray
    """Items per query [N] that are known to be above all others: ranks up to it are what they are."""


def place(
    asking: torch.Tensor, answering: torch.Tensor, positives: Positives, found: np.ndarray, scores: np.ndarray
) -> Placed:
    """Place the right answers among the items `found` [N, K], best first by `scores` [N, K] (float32).

    A list that ends within a tie does not tell how far it reaches: it places only what scores above its last item, or
    everything where it holds the whole gallery.
    """
    owners = positives.owners
    whole = found.shape[1] == len(answering)
    known = np.empty(len(found), np.int64)
    reached = np.zeros(len(owners), bool)
    score = np.empty(len(owners), np.float32)
    greater, equal = np.empty(len(owners), np.int64), np.ones(len(owners), np.int64)
    for start in range(0, len(found), STRIP):
        rows = slice(start, min(start + STRIP, len(found)))
        pairs = slice(positives.offsets[rows.start], positives.offsets[rows.stop])
        first_SK, size_SK = _blocks_of_equals(scores[rows])
        known[rows] = len(answering) if whole else first_SK[:, -1]
        row = owners[pairs] - start
        at, listed = _find(found[rows], row, positives.indices[pairs], len(answering))
        reached[pairs] = listed & (first_SK[row, at] < known[rows][row])
        score[pairs] = scores[rows][row, at]
        greater[pairs] = np.where(reached[pairs], first_SK[row, at], known[rows][row])
        equal[pairs] = size_SK[row, at]
    beyond = np.flatnonzero(~reached)
    # A number for the eye: it orders nothing, and stays below those that were found.
    own = _products(asking, answering, owners[beyond], positives.indices[beyond])
    score[beyond] = np.minimum(own, scores[owners[beyond], -1])
    counts = Counts.of(positives, score, greater, equal)
    equal[beyond] = counts.equal_positives[beyond]
    return Placed(counts, known)


def level(found: np.ndarray, scores: np.ndarray, twins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lists [N, K] in which items with one vector have one score: a product may round at the edge of a block.

    `twins` [M] numbers the gallery's vectors: equal ones alike.
    """
    if len(np.unique(twins)) == len(twins):
        return found, scores
    found, scores = found.copy(), scores.copy()
    for start in range(0, len(found), STRIP):
        here = slice(start, start + STRIP)
        kinds = twins[found[here]]  # (S, K)
        order = np.lexsort((-scores[here], kinds), axis=1)
        ordered = np.take_along_axis(kinds, order, 1)
        new = np.c_[np.ones(len(ordered), bool), ordered[:, 1:] != ordered[:, :-1]]
        first = np.maximum.accumulate(np.where(new, np.arange(ordered.shape[1]), 0), axis=1)
        best = np.take_along_axis(np.take_along_axis(scores[here], order, 1), first, 1)
        np.put_along_axis(scores[here], order, best, 1)
        again = np.argsort(-scores[here], axis=1, kind="stable")
        found[here], scores[here] = (np.take_along_axis(each[here], again, 1) for each in (found, scores))
    return found, scores


def twins_of(gallery: torch.Tensor) -> np.ndarray:
    """Number the vectors of a gallery [M, D], equal ones alike: [M], by a hash of their float32 bits."""
    weights = np.random.default_rng(0).integers(2**64, size=gallery.shape[1], dtype=np.uint64)
    hashed = np.empty(len(gallery), np.uint64)
    for start, block in blocks(gallery):
        bits = (block.cpu() + 0.0).contiguous().numpy().view(np.uint32)  # + 0.0: -0 is 0
        hashed[start : start + len(block)] = (bits.astype(np.uint64) * weights).sum(1, dtype=np.uint64)
    return np.unique(hashed, return_inverse=True)[1]


def _blocks_of_equals(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each place [S, K] of falling scores where its block of equal ones begins, and that block's size."""
    places = np.arange(scores.shape[1])
    new = np.c_[np.ones(len(scores), bool), scores[:, 1:] != scores[:, :-1]]
    first = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    ends = np.c_[new[:, 1:], np.ones(len(scores), bool)]
    last = np.minimum.accumulate(np.where(ends, places, scores.shape[1])[:, ::-1], axis=1)[:, ::-1]
    return first, last - first + 1


def _find(found: np.ndarray, row: np.ndarray, item: np.ndarray, gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each pair's item [P] in the list of its row, and whether it is there."""
    listed = (found + np.arange(len(found))[:, None] * gallery).ravel()
    asked = row * gallery + item
    order = np.argsort(listed)
    at = order[np.minimum(np.searchsorted(listed, asked, sorter=order), len(order) - 1)]
    return at % found.shape[1], listed[at] == asked


def _products(asking: torch.Tensor, answering: torch.Tensor, queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    products = np.empty(len(queries), np.float32)
    step = max(1, BLOCK // asking.shape[1])
    for start in range(0, len(queries), step):
        q, g = (torch.from_numpy(each[start : start + step]) for each in (queries, items))
        left, right = asking[q.to(asking.device)].float(), answering[g.to(answering.device)].float()
        products[start : start + step] = (left.cpu() * right.cpu()).sum(1).numpy()
    return products
