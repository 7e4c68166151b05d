"""The report's figures of training and of ranks.

Each says in words what it shows, for those who cannot see it: its axes, and the first, last and best values.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval_eval.page.drawing import (
    BLUE,
    INK,
    LINE,
    ORANGE,
    Figure,
    History,
    axis_of,
    draw,
    in_words,
    is_number,
    label_ends,
)
from retrieval_eval.page.query_results import QueryResults
from retrieval_eval.report import Report

BINS = 50
CLASSES = (1, 5, 10, 50, 100)  # upper ends of the classes of ranks; what is beyond is one more


@dataclass(frozen=True)
class Curve:
    """A curve to draw: the key in the history, its label, its colour, its dashes, and which values are best."""

    key: str
    label: str
    colour: str
    style: str = "-"
    lower_is_better: bool = False


def training_figures(history: History, directions: Sequence[str]) -> list[Figure]:
    """Draw loss, RSUM, recalls and similarities over training: the ones that `history` holds."""
    recalls = [
        Curve(f"val/{direction}/r{k}", f"{direction} R@{k}", colour, style)
        for direction, colour in zip(directions, (BLUE, ORANGE), strict=False)
        for k, style in ((1, "-"), (5, "--"), (10, ":"))
    ]
    similarities = [
        Curve(f"{split}/{key}", f"{split} {label}", colour, style, lower_is_better=lower)
        for split, style in (("train", "-"), ("val", "--"))
        for key, label, colour, lower in (
            ("positive_similarity", "positive", BLUE, False),
            ("hardest_negative_similarity", "negative", ORANGE, True),
        )
    ]
    loss = [
        Curve("train/loss", "train", BLUE, lower_is_better=True),
        Curve("val/loss", "val", ORANGE, lower_is_better=True),
    ]
    history, left_out = _of_one_batch_size(history)
    drawn = [
        _curves("Loss", left_out, history, loss),
        _curves("RSUM", "on the validation split; 600 is perfect", history, [Curve("val/rsum", "RSUM", BLUE)]),
        _curves("Recall", "percent, on the validation split", history, recalls),
        _curves("Similarity", "mean of the pairs and of their hardest negatives", history, similarities),
    ]
    return [figure for figure in drawn if figure is not None]


def _of_one_batch_size(history: History) -> tuple[History, str]:
    """Return `history` without the training rows of an odd batch, and a note of how many these are.

    A loss depends on its number of negatives: the last batch of an epoch, where it has fewer, is no progress. (Rows
    that do not tell their ``train/batch`` stay.)
    """
    sizes = Counter(row["train/batch"] for row in history if "train/batch" in row)
    if not sizes:
        return history, ""
    usual, count = sizes.most_common(1)[0]
    odd = sizes.total() - count
    note = f"without {odd:,} last {'batch' if odd == 1 else 'batches'} of an epoch with other than {usual:,.0f} pairs"
    return [row for row in history if row.get("train/batch", usual) == usual], note if odd else ""


def rank_figures(report: Report) -> list[Figure]:
    """Draw how the ranks of the best positives are distributed, cumulated and in classes."""
    colours = (BLUE, ORANGE)

    def cumulated(axes: Any) -> None:
        for place, (direction, colour) in enumerate(zip(report.directions, colours, strict=False)):
            _recall_curve(axes, report, direction, colour)
            _name(axes, direction, colour, place, below=len(report.directions))
        _ranks_below(axes)

    ends = [end for end in CLASSES if report.depth is None or end <= report.depth]
    limits = [*ends, math.inf]
    starts = [1, *(end + 1 for end in ends)]
    names = [str(end) if end == start else f"{start}–{end}" for start, end in zip(starts, ends, strict=False)]
    names.append(f"> {ends[-1]}")
    shares = {
        direction: np.diff([0.0, *(100.0 * np.mean(report.ranks[direction].expected <= limit) for limit in limits)])
        for direction in report.directions
    }

    def classes(axes: Any) -> None:
        width = 0.8 / len(report.directions)
        for place, ((direction, share), colour) in enumerate(zip(shares.items(), colours, strict=False)):
            x = np.arange(len(names)) + (place - (len(report.directions) - 1) / 2) * width
            axes.bar(x, share, width * 0.9, color=colour)
            for at, value in zip(x, share, strict=True):
                axes.text(at, value + 1, f"{value:.0f}", ha="center", color=INK)
            _name(axes, direction, colour, place)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("rank of the best right answer")
        axes.set_ylim(0, None)
        axes.margins(y=0.12)
        axes.xaxis.grid(visible=False)

    told = {
        direction: ", ".join(f"{value:.0f} at {name}" for name, value in zip(names, share, strict=True))
        for direction, share in shares.items()
    }
    return [
        Figure(
            "Recall@k",
            "percent of the queries answered within the first k",
            draw(cumulated, _recall_in_words({name: (report, name) for name in report.directions})),
        ),
        Figure(
            "Ranks in classes",
            "percent of the queries",
            draw(classes, in_words("Percent of the queries by the rank of their best right answer", told)),
        ),
    ]


def similarity_figures(directions: Mapping[str, QueryResults]) -> list[Figure]:
    """Draw per direction how the scores of all positives and of each query's hardest negative are distributed."""
    return [
        Figure(
            f"Similarity, {direction}",
            "percent of all positives, and of each query's hardest negative",
            draw(*_histogram(results)),
        )
        for direction, results in directions.items()
    ]


def _histogram(results: QueryResults) -> tuple[Callable[[Any], None], str]:
    kinds = [("positives", results.positive_scores_P, BLUE)]
    if np.isfinite(results.hardest_Q).any():  # a gallery of positives alone has no negatives
        kinds.append(("hardest negatives", results.hardest_Q[np.isfinite(results.hardest_Q)], ORANGE))
    edges = np.histogram_bin_edges(np.concatenate([scores for _, scores, _ in kinds]).astype(np.float64), BINS)

    def paint(axes: Any) -> None:
        for place, (label, scores, colour) in enumerate(kinds):
            share = 100.0 * np.histogram(scores, edges)[0] / len(scores)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(share, edges, color=colour, linewidth=1.8)
            _name(axes, label, colour, place, left=True)
        axes.set_ylim(0, None)
        axes.margins(y=0.25)
        axes.set_xlabel("score")

    told = {
        label: f"lowest {scores.min():.3f}, half of them below {np.median(scores):.3f}, highest {scores.max():.3f}"
        for label, scores, _ in kinds
    }
    return paint, in_words(f"Percent by score, {results.direction}", told)


def compared_figures(a: Report, b: Report, names: Sequence[str]) -> list[Figure]:
    """Draw recall@k of two runs, per direction."""

    def curves(direction: str) -> Callable[[Any], None]:
        def paint(axes: Any) -> None:
            for place, (report, name, colour) in enumerate(zip((a, b), names, (BLUE, ORANGE), strict=True)):
                _recall_curve(axes, report, direction, colour)
                _name(axes, name, colour, place, below=2)
            _ranks_below(axes)

        return paint

    return [
        Figure(
            f"Recall@k, {direction}",
            "percent of the queries",
            draw(
                curves(direction),
                _recall_in_words(dict(zip(names, ((a, direction), (b, direction)), strict=True)), direction),
            ),
        )
        for direction in a.directions
    ]


def _recall_in_words(curves: Mapping[str, tuple[Report, str]], direction: str = "") -> str:
    told = {}
    for name, (report, of_direction) in curves.items():
        ranks = report.ranks[of_direction].expected
        deepest = report.depth or report.gallery(of_direction)
        shares = [f"{100 * np.mean(ranks <= k):.1f} at {k}" for k in (1, 5, 10, 100) if k <= deepest]
        told[name] = ", ".join(shares) + (f", 100 from {ranks.max():,.0f}" if report.depth is None else "")
    return in_words(
        " ".join(["Percent of the queries answered within the first k, against k", direction]).strip(), told
    )


def _recall_curve(axes: Any, report: Report, direction: str, colour: str) -> None:
    ranks, counts = np.unique(report.ranks[direction].expected, return_counts=True)
    share = 100.0 * np.cumsum(counts) / counts.sum()
    ends = report.gallery(direction), 100.0
    if report.depth is not None:  # the curve ends where ranks are told no more
        ranks, share = ranks[ranks <= report.depth], share[ranks <= report.depth]
        ends = report.depth, share[-1] if len(share) else 0.0
    axes.step(np.r_[ranks, ends[0]], np.r_[share, ends[1]], where="post", color=colour, linewidth=1.8)


def _ranks_below(axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_xlim(1, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(0, 103)
    axes.set_xlabel("k (log scale)")


def _curves(heading: str, note: str, history: History, curves: Sequence[Curve]) -> Figure | None:
    rows = {curve.key: [row for row in history if is_number(row.get(curve.key))] for curve in curves}
    curves = [curve for curve in curves if rows[curve.key]]
    if not curves:
        return None
    axis = axis_of([rows[curve.key] for curve in curves])
    told = {curve.label: _course(rows[curve.key], curve, axis) for curve in curves}

    def paint(axes: Any) -> None:
        ends = []
        for curve in curves:
            x = [row[axis] for row in rows[curve.key]]
            y = [row[curve.key] for row in rows[curve.key]]
            marker = "o" if len(x) == 1 else None
            axes.plot(x, y, curve.style, color=curve.colour, linewidth=1.8, marker=marker)
            ends.append((x[-1], y[-1], curve.label, curve.colour))
        axes.set_xlabel(axis.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        label_ends(axes, ends)

    return Figure(heading, note, draw(paint, in_words(f"{heading} against {axis.replace('_', ' ')}", told)))


def _course(rows: History, curve: Curve, axis: str) -> str:
    """Say where a curve starts, ends and is best."""
    best = (min if curve.lower_is_better else max)(rows, key=lambda row: row[curve.key])
    name = "lowest" if curve.lower_is_better else "highest"
    points = (("first", rows[0]), ("last", rows[-1]), (name, best))
    return ", ".join(f"{word} {row[curve.key]:.4g} at {row[axis]:.4g}" for word, row in points)


def _name(axes: Any, label: str, colour: str, place: int, *, below: int = 0, left: bool = False) -> None:
    """Write the label of colour number `place` into a corner of the drawing, the lower one under `below` labels."""
    x, align = (0.02, "left") if left else (0.98, "right")
    y = 0.06 + LINE * (below - 1 - place) if below else 0.9 - LINE * place
    axes.text(x, y, label, transform=axes.transAxes, ha=align, color=colour)
