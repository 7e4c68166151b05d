"""Example retrievals for the tracker's table: the queries with the worst ranks and a seeded draw of the others."""

from dataclasses import dataclass

import numpy as np

from allpairs.embeddings import EmbeddingSet
from retrieval_eval.report import Report
from retrieval_eval.shortlist import shortlist

SHOWN = 3
"""Retrieved items per example."""


@dataclass(frozen=True)
class Example:
    """One query and what came back."""

    direction: str
    rank: float | None
    """Expected rank of the best positive; None where a search told only that it is beyond its depth."""
    picture: int
    """Row of the image to show: the query itself, or the first image retrieved."""
    query: str
    retrieved: str
    answer: str


def examples(embeddings: EmbeddingSet, report: Report, count: int) -> list[Example]:
    """Return up to `count` examples per direction: half of them the worst, half drawn evenly from the rest."""
    sides = {
        "i2t": (embeddings.images, embeddings.captions, embeddings.image_keys, embeddings.texts),
        "t2i": (embeddings.captions, embeddings.images, embeddings.texts, embeddings.image_keys),
    }
    chosen: list[Example] = []
    for direction, (queries, gallery, query_names, gallery_names) in sides.items():
        ranks = report.ranks[direction].expected
        rows = _choose(ranks, count)
        found = shortlist(queries[rows], gallery, SHOWN).indices
        for row, retrieved in zip(rows.tolist(), found.tolist(), strict=True):
            right = gallery_names[int(report.positives[direction].of(row)[0])]
            picture = row if direction == "i2t" else retrieved[0]
            names = " | ".join(gallery_names[item] for item in retrieved)
            rank = float(ranks[row]) if report.depth is None or ranks[row] <= report.depth else None
            chosen.append(Example(direction, rank, picture, query_names[row], names, right))
    return chosen


def _choose(ranks: np.ndarray, count: int) -> np.ndarray:
    count = min(count, len(ranks))
    worst_first = np.argsort(-ranks, kind="stable")
    worst = worst_first[: count // 2]
    rest = worst_first[count // 2 :]
    return np.concatenate([worst, rest[np.linspace(0, len(rest) - 1, count - len(worst)).astype(int)]])
