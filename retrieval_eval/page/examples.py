"""The queries a report shows: the ones that went worst and best, with what the model answered."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrieval_eval.embeddings import EmbeddingSet
from retrieval_eval.evaluation import Report
from retrieval_eval.positives import Positives
from retrieval_eval.shortlist import shortlist
from retrieval_eval.ties import Ranks

SHOWN = 5  # answers per query
PER_KIND = 6  # queries per direction, worst and best each
DEPTH = 50  # answers looked at for the best wrong one
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Item:
    """One image (its key, and a data URI if it has a thumbnail) or caption, as the page shows it."""

    text: str
    is_image: bool
    picture: str | None = None


@dataclass(frozen=True)
class Answer:
    """One ranked item of a query."""

    item: Item
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query, the rank of its best right answer, the first answers, and the right one when it is not among them."""

    query: Item
    rank: str
    answers: list[Answer]
    missed: Item | None


@dataclass(frozen=True)
class Examples:
    """The queries shown of one direction."""

    worst: list[Example]
    best: list[Example]


@dataclass(frozen=True, eq=False)
class _Side:
    embeddings: np.ndarray  # [N, D]
    items: list[Item]
    image_ids: np.ndarray  # [N]


def examples(embeddings: EmbeddingSet, report: Report) -> dict[str, Examples]:
    """Return per direction the worst queries (by rank) and the best (by margin over the best wrong answer)."""
    files = zip(embeddings.image_keys, embeddings.thumbnails, strict=True)
    pictures = [Item(key, True, _data_uri(file)) for key, file in files]
    captions = [Item(text, False) for text in embeddings.texts]
    sides = [
        _Side(embeddings.images, pictures, embeddings.image_ids),
        _Side(embeddings.captions, captions, embeddings.caption_ids),
    ]
    return {
        direction: _choose(sides[place], sides[1 - place], report.positives[direction], report.ranks[direction])
        for place, direction in enumerate(report.directions)
    }


def _choose(asking: _Side, answering: _Side, positives: Positives, ranks: Ranks) -> Examples:
    found = shortlist(asking.embeddings, answering.embeddings, DEPTH)
    right = positives.contain(found.indices)  # [N, DEPTH]
    best_wrong = np.where(right, -np.inf, found.scores).max(1)
    # Where every shortlisted answer is right, the last one's score bounds the best wrong one's.
    margin = ranks.score - np.where(np.isfinite(best_wrong), best_wrong, found.scores[:, -1])

    def example(query: int) -> Example:
        answers = [
            Answer(answering.items[item], float(score), bool(hit))
            for item, score, hit in zip(
                found.indices[query, :SHOWN], found.scores[query, :SHOWN], right[query, :SHOWN], strict=True
            )
        ]
        missed = None
        if not any(answer.right for answer in answers):
            candidates = positives.of(query)
            scores = answering.embeddings[candidates] @ asking.embeddings[query]
            missed = answering.items[candidates[scores.argmax()]]
        return Example(asking.items[query], _rank(ranks, query), answers, missed)

    worst = np.lexsort((margin, -ranks.expected))
    best = np.lexsort((-margin, ranks.expected))
    return Examples(
        worst=[example(query) for query in _of_different_images(worst, asking.image_ids)],
        best=[example(query) for query in _of_different_images(best, asking.image_ids)],
    )


def _of_different_images(order: np.ndarray, image_ids: np.ndarray) -> Iterator[int]:
    """Yield the first queries of `order` that belong to different images: five captions of one would say little."""
    seen: set[int] = set()
    for query in order:
        if len(seen) == PER_KIND:
            return
        if image_ids[query] not in seen:
            seen.add(image_ids[query])
            yield int(query)


def _rank(ranks: Ranks, query: int) -> str:
    first, last = ranks.optimistic[query], ranks.pessimistic[query]
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def _data_uri(file: bytes | None) -> str | None:
    """Return a PNG or JPEG file as a data URI; None for anything else, which a page should not carry."""
    for signature, kind in SIGNATURES.items():
        if file is not None and file.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(file).decode()}"
    return None
