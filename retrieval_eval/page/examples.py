"""The queries a report opens with: the ones that went worst and best, and the gallery items that answer too much."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrieval_eval.page.asked import REACH, Asked

PER_KIND = 6  # queries per direction, worst and best each
HUBS = 8  # gallery items per direction


@dataclass(frozen=True)
class Hub:
    """A gallery item among the first answers of many queries, and of how many of these it is a right answer."""

    item: int
    queries: int
    right: int


def worst_first(asked: Asked) -> np.ndarray:
    """Return the queries [Q] by falling rank of the best positive, then by how far it is behind."""
    return np.lexsort((asked.margin, -asked.rank_Q))


def best_first(asked: Asked) -> np.ndarray:
    """Return the queries [Q] by rank of the best positive, then by how far it is ahead."""
    return np.lexsort((-asked.margin, asked.rank_Q))


def of_different_images(order: np.ndarray, image_of_Q: np.ndarray) -> list[int]:
    """Return the first queries of `order` that belong to different images: five captions of one would say little."""

    def chosen() -> Iterator[int]:
        seen: set[int] = set()
        for query in order:
            if len(seen) == PER_KIND:
                return
            if image_of_Q[query] not in seen:
                seen.add(image_of_Q[query])
                yield int(query)

    return list(chosen())


def hubs(asked: Asked) -> list[Hub]:
    """Return the gallery items that are in the top 10 of the most queries, the worst first."""
    first, right = asked.answers_QK[:, :REACH], asked.right_QK[:, :REACH]
    queries = np.bincount(first.ravel(), minlength=asked.positives.gallery)
    hits = np.bincount(first[right], minlength=asked.positives.gallery)
    order = np.argsort(-queries, kind="stable")[:HUBS]
    return [Hub(int(item), int(queries[item]), int(hits[item])) for item in order if queries[item]]


def never_found(asked: Asked) -> int:
    """Return how many gallery items are in no query's top 10."""
    return asked.positives.gallery - len(np.unique(asked.answers_QK[:, :REACH]))
