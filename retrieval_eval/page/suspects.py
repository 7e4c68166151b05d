"""Suspected false negatives: pairs that the data call wrong and that may be right.

The rule. A wrong answer among a query's first ten is suspected if

- *same text*: a caption of the image says what the other caption says, but for case and punctuation; or
- *similar text*: the two share at least 90 % of their pairs of neighbouring words (Dice's coefficient), that is, one
  word more or less in a caption of ten or more; or
- *score*: it scores above the query's best positive by more than two standard deviations of the scores of all
  positives of the direction.

A pair of image and caption is listed once, for the first reason that holds in either direction.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from allpairs.embeddings import EmbeddingSet
from retrieval_eval.page.query_results import REACH, QueryResults

SIMILAR = 0.9  # Dice's coefficient of the pairs of neighbouring words
REASONS = ("same text", "similar text", "score")
RULE = (
    "Among the first ten answers, but not a positive, and: the same text as a caption of the image (but for case and"
    " punctuation), or a similar one (90 % of the pairs of neighbouring words), or a score above the best positive's by"
    " more than two standard deviations of the positives' scores."
)


@dataclass(frozen=True)
class Suspect:
    """A pair of image and caption (their rows), found by a query, with the caption of the image that is alike."""

    reason: str
    image: int
    caption: int
    direction: str
    query: int
    score: float
    ahead: float  # of the query's best positive
    alike: int | None  # caption of the image


def suspects(embeddings: EmbeddingSet, directions: dict[str, QueryResults]) -> list[Suspect]:
    """Return the suspected pairs: by reason, then by how far they are ahead of the best positive."""
    captions_of: dict[int, list[int]] = defaultdict(list)
    for caption, image_id in enumerate(embeddings.caption_ids.tolist()):
        captions_of[image_id].append(caption)
    of_image = [captions_of[image_id] for image_id in embeddings.image_ids.tolist()]
    words = [_pairs_of_words(text) for text in embeddings.texts]
    best: dict[tuple[int, int], Suspect] = {}
    for results in directions.values():
        for suspect in _of_direction(results, of_image, words):
            pair = suspect.image, suspect.caption
            if pair not in best or _order(suspect) < _order(best[pair]):
                best[pair] = suspect
    return sorted(best.values(), key=_order)


def _order(suspect: Suspect) -> tuple[int, float]:
    return REASONS.index(suspect.reason), -suspect.ahead


def _of_direction(
    results: QueryResults, of_image: list[list[int]], words: list[frozenset[tuple[str, str]]]
) -> Iterator[Suspect]:
    wide = 2 * float(np.std(results.positive_scores_P, dtype=np.float64))
    ahead_QK = results.scores_QK[:, :REACH] - results.best_Q[:, None]
    for query, place in np.argwhere(~results.right_QK[:, :REACH]).tolist():
        row, item = int(results.rows_Q[query]), int(results.answers_QK[query, place])
        image, caption = (row, item) if results.from_images else (item, row)
        likeness, alike = max(((_dice(words[caption], words[own]), -own) for own in of_image[image]), default=(0.0, 0))
        ahead = float(ahead_QK[query, place])
        if likeness >= SIMILAR:
            reason = "same text" if likeness == 1.0 else "similar text"
        elif wide > 0 and ahead > wide:
            reason = "score"
        else:
            continue
        score = float(results.scores_QK[query, place])
        twin = None if reason == "score" else -alike
        yield Suspect(reason, image, caption, results.direction, query, score, ahead, twin)


def _pairs_of_words(text: str) -> frozenset[tuple[str, str]]:
    """Return the pairs of neighbouring words, the text's start and end among them."""
    words = ["", *re.findall(r"\w+", text.casefold()), ""]
    return frozenset(pairwise(words))


def _dice(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))
