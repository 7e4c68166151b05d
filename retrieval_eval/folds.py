"""What is measured at once, a fold: two galleries with what names their rows, and the report on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import fsum
from typing import Any

import numpy as np

from retrieval_eval.metrics import with_rsum
from retrieval_eval.positives import Positives
from retrieval_eval.report import Report
from retrieval_eval.searched.found import Searched
from retrieval_eval.uncertainty import Clusters


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images or captions, which ask or answer: embeddings with what names their rows."""

    letter: str
    """``i``, ``v``, or ``t``: with `numbers`, a name that no other row has."""
    embeddings: np.ndarray  # [N, D]
    ids: np.ndarray  # [N] id of the image: its own, or the one a caption describes
    numbers: np.ndarray  # [N] distinct: an image's id, a caption's row
    labels: Sequence[str]  # [N] keys or texts

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: np.ndarray) -> "Gallery":
        """Return some of the rows."""
        return Gallery(
            self.letter, self.embeddings[rows], self.ids[rows], self.numbers[rows], [self.labels[r] for r in rows]
        )

    def name(self, row: int) -> str:
        """Return the name of a row, without spaces: ``i17``, ``t3``."""
        return f"{self.letter}{self.numbers[row]}"


@dataclass(frozen=True, eq=False)
class MeasuredFold:
    """A report with, per direction, who asks whom, and which queries the bootstrap draws together."""

    report: Report
    asking: dict[str, Gallery]
    answering: dict[str, Gallery]
    clusters: Clusters
    rows: Mapping[str, np.ndarray] | None = None
    """Where only some queries ask: per direction their rows among all that could."""

    def searches(self) -> list[tuple[Report, np.ndarray, np.ndarray]]:
        """Return reports with the queries [N, D] and gallery [M, D] that each is about: one, if it serves both ways."""
        forward, *backward = self.report.directions
        if all(self.asking[name] is self.answering[forward] for name in backward):
            return [(self.report, self.asking[forward].embeddings, self.answering[forward].embeddings)]
        return [
            (self.alone(name), self.asking[name].embeddings, self.answering[name].embeddings)
            for name in self.report.directions
        ]

    def alone(self, direction: str) -> Report:
        """Return the report on one direction, as if no other had been measured."""
        chosen: dict[str, Any] = {
            field.name: {direction: value[direction]}
            for field in fields(Report)
            if isinstance(value := getattr(self.report, field.name), dict) and set(value) == set(self.report.directions)
        }
        ours = {name: value for name, value in self.report.metrics.items() if name.startswith(f"{direction}/")}
        ties = {treatment: {name: metrics[name] for name in ours} for treatment, metrics in self.report.ties.items()}
        return replace(self.report, metrics=ours, ties=ties, **chosen)


def join(forward: Report, backward: Report) -> Report:
    """Return one report on two directions that were measured apart, with RSUM."""
    merged: dict[str, Any] = {}
    for field in fields(Report):
        ours, theirs = getattr(forward, field.name), getattr(backward, field.name)
        merged[field.name] = ours | theirs if isinstance(ours, dict) else ours
    ties = {treatment: metrics | backward.ties[treatment] for treatment, metrics in forward.ties.items()}
    for metrics in ties.values():
        with_rsum(metrics, (*forward.directions, *backward.directions), forward.ks)
    return replace(forward, **merged | {"metrics": dict(ties["expected"]), "ties": ties})


def average(reports: Sequence[Report]) -> Report:
    """Return the report on folds: every metric, RSUM too, averaged; the queries one fold after the other.

    The positives of a query point into the gallery of its own fold.
    """
    first = reports[0]
    if len(reports) == 1:
        return first
    ties = {treatment: _mean([report.ties[treatment] for report in reports]) for treatment in first.ties}
    return replace(
        first,
        metrics=ties["expected"],
        ties=ties,
        ranks={name: _stack([report.ranks[name] for report in reports]) for name in first.directions},
        tied_queries={name: sum(report.tied_queries[name] for report in reports) for name in first.directions},
        positives={name: _chain([report.positives[name] for report in reports]) for name in first.directions},
        counts={name: _stack([report.counts[name] for report in reports]) for name in first.directions},
        per_query={
            name: {
                value: np.concatenate([report.per_query[name][value] for report in reports])
                for value in first.per_query[name]
            }
            for name in first.directions
        },
        searched={
            name: Searched.joined(
                [report.searched[name] for report in reports], [report.queries(name) for report in reports]
            )
            for name in first.searched
        },
    )


def _mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: fsum(one[name] for one in metrics) / len(metrics) for name in metrics[0]}


def _stack(parts: Sequence[Any]) -> Any:
    """Join dataclasses of arrays, field by field."""
    return type(parts[0])(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(parts[0])}
    )


def _chain(parts: Sequence[Positives]) -> Positives:
    counts = np.concatenate([part.counts for part in parts])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Positives(offsets, np.concatenate([part.indices for part in parts]), max(part.gallery for part in parts))
