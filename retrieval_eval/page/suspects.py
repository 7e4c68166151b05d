"""Suspected false negatives: pairs of image and caption that the data call wrong and that may be right.

By text, whatever the model thinks of it first:

- *same text*: a caption of the image and the other image's caption are the same words (`retrieval_eval.page.folding`),
  wherever the model ranks the pair; texts of more than `GENERAL` images say too little of any and are left out;
- *similar text*: among a query's first ten answers, and the two share at least 90 % of their pairs of neighbouring
  words (Dice's coefficient), that is, one word more or less in a caption of ten or more.

By score alone, which a weak model gives to anything:

- *score*: a query's first answer, ahead of its best right answer by a lead that stands out among the leads of all
  queries of its direction: beyond the upper quartile by more than three times the distance between the quartiles (the
  outer fence of Tukey, Exploratory Data Analysis, 1977).

A pair is listed once, for the first reason that holds, with the direction in which it is further ahead.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from allpairs.embeddings import EmbeddingSet
from retrieval_eval.page.folding import fold, is_spaceless, words
from retrieval_eval.page.query_results import REACH, QueryResults

SIMILAR = 0.9  # Dice's coefficient of the pairs of neighbouring words
GENERAL = 20  # images that may share a text
FENCE = 3.0  # distances between the quartiles
RULES = {
    "text": (
        "A caption of the image says the same as the other image's, but for case, accents and punctuation; or, among a"
        " query's first ten answers, nearly the same: 90 % of the pairs of neighbouring words."
    ),
    "score": (
        "No text speaks for these. The first answer of a query, ahead of its best right one by a lead that stands out"
        " among all queries: above the upper quartile by more than three times the distance between the quartiles."
    ),
}


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


@dataclass(frozen=True)
class Suspects:
    """What is suspected, by evidence; each furthest ahead of the best right answer first, same texts before similar."""

    text: list[Suspect]
    score: list[Suspect]
    general: int
    """Texts that are left out because more than `GENERAL` images share them."""


def suspects(embeddings: EmbeddingSet, directions: Mapping[str, QueryResults]) -> Suspects:
    """Return the suspected pairs among the queries of `directions`."""
    captions_of: dict[int, list[int]] = defaultdict(list)
    for caption, image_id in enumerate(embeddings.caption_ids.tolist()):
        captions_of[image_id].append(caption)
    of_image = [captions_of[image_id] for image_id in embeddings.image_ids.tolist()]
    texts = [_pieces(text) for text in embeddings.texts]
    same, general = _same_texts(embeddings, of_image, texts)
    found = [_furthest("same text", pair, own, embeddings, directions) for pair, own in same.items()]
    by_text = {(one.image, one.caption): one for one in found if one is not None}
    for one in _similar_texts(directions, of_image, texts):
        pair = one.image, one.caption
        known = by_text.get(pair)
        if pair not in same and (known is None or one.ahead > known.ahead):
            by_text[pair] = one
    by_score: dict[tuple[int, int], Suspect] = {}
    for one in _outstanding(directions):
        pair = one.image, one.caption
        if pair not in by_text and (pair not in by_score or one.ahead > by_score[pair].ahead):
            by_score[pair] = one
    return Suspects(
        sorted(by_text.values(), key=lambda one: (one.reason != "same text", -one.ahead)),
        sorted(by_score.values(), key=lambda one: -one.ahead),
        general,
    )


def _pieces(text: str) -> tuple[str, ...]:
    """Return a caption's words; of scripts without spaces each letter."""
    return tuple(piece for word in words(fold(text)) for piece in (word if is_spaceless(word) else (word,)))


def _same_texts(
    embeddings: EmbeddingSet, of_image: list[list[int]], texts: list[tuple[str, ...]]
) -> tuple[dict[tuple[int, int], int], int]:
    """Return pairs of an image and another's caption with the caption of the image that says it, and `general`."""
    row_of = {image_id: row for row, image_id in enumerate(embeddings.image_ids.tolist())}
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for caption, text in enumerate(texts):
        if text:
            groups[text].append(caption)
    pairs: dict[tuple[int, int], int] = {}
    general = 0
    for captions in groups.values():
        own: dict[int, int] = {}  # the first of an image's captions that says it
        for caption in captions:
            own.setdefault(row_of[int(embeddings.caption_ids[caption])], caption)
        if len(own) > GENERAL:
            general += 1
            continue
        pairs |= {
            (image, caption): alike
            for image, alike in own.items()
            for caption in captions
            if len(own) > 1 and caption not in of_image[image]
        }
    return pairs, general


def _furthest(
    reason: str, pair: tuple[int, int], alike: int, embeddings: EmbeddingSet, directions: Mapping[str, QueryResults]
) -> Suspect | None:
    """Return the suspect of a pair, None where the page shows no query of either."""
    image, caption = pair
    score = float(embeddings.images[image].astype(np.float32) @ embeddings.captions[caption].astype(np.float32))
    found = []
    for results in directions.values():
        row = image if results.from_images else caption
        query = int(np.searchsorted(results.rows_Q, row))
        if query < len(results.rows_Q) and results.rows_Q[query] == row:
            ahead = score - float(results.best_Q[query])
            found.append(Suspect(reason, image, caption, results.direction, query, score, ahead, alike))
    return max(found, key=lambda one: one.ahead, default=None)


def _wrong_answers(results: QueryResults, reach: int) -> Iterator[tuple[int, int, int, float, float]]:
    """Yield (image, caption, query, score, lead) of the wrong ones among the first answers."""
    for query, place in np.argwhere(~results.right_QK[:, :reach]).tolist():
        row, item = int(results.rows_Q[query]), int(results.answers_QK[query, place])
        score = float(results.scores_QK[query, place])
        image, caption = (row, item) if results.from_images else (item, row)
        yield image, caption, query, score, score - float(results.best_Q[query])


def _similar_texts(
    directions: Mapping[str, QueryResults], of_image: list[list[int]], texts: list[tuple[str, ...]]
) -> Iterator[Suspect]:
    # The text's start and end are words too: what stands there matters.
    pairs = [frozenset(pairwise(["", *text, ""])) for text in texts]
    for results in directions.values():
        for image, caption, query, score, ahead in _wrong_answers(results, REACH):
            if not texts[caption]:
                continue
            likeness, alike = max(
                ((_dice(pairs[caption], pairs[own]), -own) for own in of_image[image]), default=(0.0, 0)
            )
            if (
                likeness >= SIMILAR and texts[caption] != texts[-alike]
            ):  # a text that is the same is not looked for here
                yield Suspect("similar text", image, caption, results.direction, query, score, ahead, -alike)


def _outstanding(directions: Mapping[str, QueryResults]) -> Iterator[Suspect]:
    for results in directions.values():
        leads = -results.margin[np.isfinite(results.margin)]
        if not len(leads):
            continue
        lower, upper = np.percentile(leads, [25, 75])
        fence = max(0.0, float(upper + FENCE * (upper - lower)))
        for image, caption, query, score, ahead in _wrong_answers(results, 1):
            if ahead > fence:
                yield Suspect("score", image, caption, results.direction, query, score, ahead, None)


def _dice(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))
