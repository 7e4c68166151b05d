"""What a page shows of one direction: each query's first answers, its positives, and its hardest negative.

Legend: Q queries shown, K answers found per query, M gallery items, D embedding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval.inputs import as_tensor, normalised
from retrieval_eval.positives import Positives
from retrieval_eval.report import Report
from retrieval_eval.shortlist import shortlist

SHOWN = 5  # answers per query
REACH = 10  # answers that make a hub, and among which a false negative is suspected
DEPTH = 50  # answers looked at for the hardest negative
LISTED = 50_000  # queries per direction that a page can hold; of more, every second, third, … one
BLOCK = 256  # queries whose whole row of scores is looked at, 1 MB per 1,000 gallery items


@dataclass(frozen=True, eq=False)
class QueryResults:
    """The queries of one direction that a page shows, [Q] each; answers best first."""

    direction: str
    from_images: bool  # images ask and captions answer, or the other way round
    rows_Q: np.ndarray  # each query's row in the asking side's embeddings
    answers_QK: np.ndarray  # gallery items
    scores_QK: np.ndarray  # float32
    right_QK: np.ndarray  # bool
    positives: Positives
    positive_scores_P: np.ndarray  # float32, in the order of `positives.indices`
    positive_ranks_P: np.ndarray  # 1 + items that score higher
    best_Q: np.ndarray  # score of the best positive
    hardest_Q: np.ndarray  # score of the best negative, -inf where the gallery holds positives only
    first_Q: np.ndarray  # rank of the best positive, ahead of its ties
    last_Q: np.ndarray  # the same, behind its ties
    rank_Q: np.ndarray  # the same, expected over the orders of the ties
    total: int  # queries that were measured
    depth: int | None = None  # ranks beyond it are not told: they read one more

    @property
    def asking(self) -> str:
        """The side that asks, as the embeddings name it."""
        return "images" if self.from_images else "captions"

    @property
    def margin(self) -> np.ndarray:
        """How far the best positive is ahead of the best negative (negative: behind it), [Q]."""
        return self.best_Q - self.hardest_Q


def query_results(
    embeddings: EmbeddingSet, report: Report, rows: Mapping[str, np.ndarray] | None = None
) -> dict[str, QueryResults]:
    """Return what to show per direction; the first one asks with images, the second with captions.

    `rows` gives a direction's queries their rows in the embeddings, where only a subset was asked.
    """
    sides = (embeddings.images, embeddings.captions)
    if report.cosine:
        sides = normalised(as_tensor(sides[0])).numpy(), normalised(as_tensor(sides[1])).numpy()
    found = {}
    for place, direction in enumerate(report.directions):
        queries, gallery = sides[place], sides[1 - place]
        asking = np.arange(len(queries)) if rows is None or direction not in rows else np.asarray(rows[direction])
        if len(asking) != report.queries(direction) or len(gallery) != report.gallery(direction):
            raise UserError(
                f"the report's {direction} has {report.queries(direction)} queries and {report.gallery(direction)}"
                f" gallery items, the embeddings have {len(asking)} and {len(gallery)}:"
                " they are not the ones it measured"
            )
        found[direction] = _of_direction(queries, gallery, asking, report, direction, from_images=place == 0)
    return found


def _of_direction(
    queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray, report: Report, direction: str, *, from_images: bool
) -> QueryResults:
    total = len(rows)
    kept = np.arange(0, total, -(-total // LISTED))
    rows = rows[kept]
    positives, entries = report.positives[direction].take(kept), report.positives[direction].entries(kept)
    ranks, counts = report.ranks[direction], report.counts[direction]
    answers = shortlist(queries[rows], gallery, DEPTH)
    right = positives.contain(answers.indices)
    hardest = np.where(right, -np.inf, answers.scores).max(1)
    # A query with more positives than the shortlist is deep may find no negative in it: its whole row tells.
    for block in np.array_split(np.flatnonzero(right.all(1)), -(-int(right.all(1).sum()) // BLOCK) or 1):
        scores = queries[rows[block]] @ gallery.T  # [BLOCK, M]
        for row, query in zip(scores, block, strict=True):
            row[positives.of(query)] = -np.inf
        hardest[block] = scores.max(1)
    depth = report.depth
    first, last, rank = ranks.optimistic[kept], ranks.pessimistic[kept], ranks.expected[kept]
    places = counts.greater[entries] + 1
    if depth is not None:
        beyond = first > depth
        first, last, rank = (np.where(beyond, depth + 1, each) for each in (first, last, rank))
        places = np.minimum(places, depth + 1)
    return QueryResults(
        direction=direction,
        from_images=from_images,
        rows_Q=rows,
        answers_QK=answers.indices,
        scores_QK=answers.scores,
        right_QK=right,
        positives=positives,
        positive_scores_P=counts.score[entries],
        positive_ranks_P=places,
        best_Q=ranks.score[kept],
        hardest_Q=hardest,
        first_Q=first,
        last_Q=last,
        rank_Q=rank,
        total=total,
        depth=depth,
    )


PER_KIND = 6  # queries per direction, worst and best each
HUBS = 8  # gallery items per direction


@dataclass(frozen=True)
class Hub:
    """A gallery item among the first answers of many queries, and of how many of these it is a right answer."""

    item: int
    queries: int
    right: int


def worst_first(results: QueryResults) -> np.ndarray:
    """Return the queries [Q] by falling rank of the best positive, then by how far it is behind."""
    return np.lexsort((results.margin, -results.rank_Q))


def best_first(results: QueryResults) -> np.ndarray:
    """Return the queries [Q] by rank of the best positive, then by how far it is ahead."""
    return np.lexsort((-results.margin, results.rank_Q))


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


def hubs(results: QueryResults) -> list[Hub]:
    """Return the gallery items that are in the top 10 of the most queries, the worst first."""
    first, right = results.answers_QK[:, :REACH], results.right_QK[:, :REACH]
    queries = np.bincount(first.ravel(), minlength=results.positives.gallery)
    hits = np.bincount(first[right], minlength=results.positives.gallery)
    order = np.argsort(-queries, kind="stable")[:HUBS]
    return [Hub(int(item), int(queries[item]), int(hits[item])) for item in order if queries[item]]


def never_found(results: QueryResults) -> int:
    """Return how many gallery items are in no query's top 10."""
    return results.positives.gallery - len(np.unique(results.answers_QK[:, :REACH]))
