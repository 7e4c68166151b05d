"""What the page's script reads: the queries, answers and pictures as compact JSON, each item once."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from allpairs.embeddings import EmbeddingSet
from retrieval_eval.page.folding import letters
from retrieval_eval.page.query_results import SHOWN, QueryResults

POSITIVES = 10  # positives listed per query, the best ones
PICTURES = 32 << 20  # bytes of thumbnails in a page, at most
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
SEPARATORS = ("\u2028", "\u2029")


@dataclass(frozen=True, eq=False)
class Items:
    """The images and captions that a page mentions, by their place in its lists."""

    images: np.ndarray  # ascending rows of the embeddings
    captions: np.ndarray

    @classmethod
    def of(cls, runs: Iterable[Mapping[str, QueryResults]], images: Iterable[int], captions: Iterable[int]) -> "Items":
        """Collect what the queries of `runs` mention, and these `images` and `captions`."""
        rows: dict[bool, list[np.ndarray]] = {
            True: [np.fromiter(images, np.int64)],
            False: [np.fromiter(captions, np.int64)],
        }
        for run in runs:
            for results in run.values():
                rows[results.from_images].append(results.rows_Q)
                rows[not results.from_images] += [results.answers_QK[:, :SHOWN].ravel(), _best_positives(results)[0]]
        return cls(np.unique(np.concatenate(rows[True])), np.unique(np.concatenate(rows[False])))

    def place(self, rows: Any, is_image: bool) -> list[int]:
        """Return the places of these rows in the page's list of images or of captions."""
        return np.searchsorted(self.images if is_image else self.captions, rows).tolist()


def items_payload(embeddings: EmbeddingSet, items: Items) -> dict[str, Any]:
    """Return keys, texts, which captions each image has, and the letters that a search takes for others."""
    image_place = {int(embeddings.image_ids[row]): place for place, row in enumerate(items.images)}
    own: list[list[int]] = [[] for _ in items.images]
    for place, row in enumerate(items.captions):
        image = image_place.get(int(embeddings.caption_ids[row]))
        if image is not None:
            own[image].append(place)
    return {
        "keys": [embeddings.image_keys[row] for row in items.images],
        "texts": [embeddings.texts[row] for row in items.captions],
        "own": own,
        "letters": letters(),
    }


def pictures_payload(embeddings: EmbeddingSet, items: Items, first: Iterable[int] = ()) -> list[str | None]:
    """Return each image's thumbnail as a data URI, None without one; over the limit the rows `first` come first."""
    ahead = set(first)
    order = sorted(range(len(items.images)), key=lambda place: items.images[place] not in ahead)
    pictures: list[str | None] = [None] * len(order)
    room = PICTURES
    for place in order:
        uri = data_uri(embeddings.thumbnails[items.images[place]])
        if uri is not None and len(uri) <= room:
            pictures[place] = uri
            room -= len(uri)
    return pictures


def queries_payload(results: QueryResults, items: Items) -> dict[str, Any]:
    """Return the queries of a direction, the answers flat (5 per query), the positives as lists."""
    found = results.answers_QK[:, :SHOWN]
    positives, ranks, offsets = _best_positives(results)
    tied = np.flatnonzero(results.first_Q != results.last_Q)
    places = items.place(positives, not results.from_images)
    bounds = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    return {
        "rows": items.place(results.rows_Q, results.from_images),
        "rank": [int(rank) if rank == int(rank) else round(rank, 2) for rank in results.rank_Q.tolist()],
        "depth": results.depth,
        "tied": {int(query): [int(results.first_Q[query]), int(results.last_Q[query])] for query in tied},
        "width": found.shape[1],
        "answers": items.place(found.ravel(), not results.from_images),
        "scores": _rounded(results.scores_QK[:, :SHOWN].ravel()),
        "right": "".join("01"[hit] for hit in results.right_QK[:, :SHOWN].ravel().tolist()),
        "positives": [places[low:high] for low, high in bounds],
        "ranks": [ranks[0][low:high].tolist() for low, high in bounds],
        "similarities": [_rounded(ranks[1][low:high]) for low, high in bounds],
        "counts": results.positives.counts.tolist(),
    }


def _best_positives(results: QueryResults) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return each query's best positives, best first, as (items, (ranks, scores), offsets)."""
    order = np.lexsort((-results.positive_scores_P, results.positives.owners))
    counts = results.positives.counts
    place = np.arange(len(order)) - np.repeat(results.positives.offsets[:-1], counts)
    order = order[place < POSITIVES]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, POSITIVES))])
    return (
        results.positives.indices[order],
        (results.positive_ranks_P[order], results.positive_scores_P[order]),
        offsets,
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


def data_uri(file: bytes | None) -> str | None:
    """Return a PNG or JPEG file as a data URI; None for anything else, which a page should not carry."""
    for signature, kind in SIGNATURES.items():
        if file is not None and file.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(file).decode()}"
    return None


def embedded(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return `value` as JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in ("<", ">", "&", *SEPARATORS):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
