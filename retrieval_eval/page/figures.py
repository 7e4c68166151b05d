"""The report's figures: SVG with the colours and the font of the page, so that one drawing suits light and dark."""

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval_eval.evaluate import Report
from retrieval_eval.page.query_results import QueryResults

# matplotlib wants real colours: each stands for a CSS colour of the page, put in its place in the finished SVG.
INK, GRID = "#010101", "#010102"
BLUE, ORANGE = "#010103", "#010104"
PAGE_COLOURS = {INK: "var(--muted)", GRID: "var(--line)", BLUE: "var(--first)", ORANGE: "var(--second)"}
SIZE = (5.4, 3.1)  # inches, at 72 units each in the viewBox
BINS = 50

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """One drawing, its heading and what a screen reader says of it."""

    heading: str
    note: str
    svg: str


@dataclass(frozen=True)
class Curve:
    """A curve to draw: the key in the history, its label, its colour and its dashes."""

    key: str
    label: str
    colour: str
    style: str = "-"


def training_figures(history: History, directions: Sequence[str]) -> list[Figure]:
    """Draw loss, RSUM, recalls and similarities over training: the ones that `history` holds."""
    recalls = [
        Curve(f"val/{direction}/r{k}", f"{direction} R@{k}", colour, style)
        for direction, colour in zip(directions, (BLUE, ORANGE), strict=False)
        for k, style in ((1, "-"), (5, "--"), (10, ":"))
    ]
    similarities = [
        Curve(f"{split}/{key}", f"{split} {label}", colour, style)
        for split, style in (("train", "-"), ("val", "--"))
        for key, label, colour in (
            ("positive_similarity", "positive", BLUE),
            ("hardest_negative_similarity", "hardest negative", ORANGE),
        )
    ]
    loss = [Curve("train/loss", "train", BLUE), Curve("val/loss", "val", ORANGE)]
    drawn = [
        _curves("Loss", "", history, loss),
        _curves("RSUM", "on the validation split; 600 is perfect", history, [Curve("val/rsum", "RSUM", BLUE)]),
        _curves("Recall", "percent, on the validation split", history, recalls),
        _curves("Similarity", "mean of the pairs and of their hardest negatives", history, similarities),
    ]
    return [figure for figure in drawn if figure is not None]


def rank_figures(report: Report) -> list[Figure]:
    """Draw how the ranks of the best positives are distributed, cumulated and in classes."""
    colours = (BLUE, ORANGE)

    def cumulated(axes: Any) -> None:
        for place, (direction, colour) in enumerate(zip(report.directions, colours, strict=False)):
            _recall_curve(axes, report, direction, colour)
            axes.text(0.98, 0.15 - 0.09 * place, direction, transform=axes.transAxes, ha="right", color=colour)
        _ranks_below(axes)

    def classes(axes: Any) -> None:
        limits = [1, 5, 10, 50, 100, math.inf]
        names = ["1", "2–5", "6–10", "11–50", "51–100", "over 100"]
        width = 0.8 / len(report.directions)
        for place, (direction, colour) in enumerate(zip(report.directions, colours, strict=False)):
            ranks = report.ranks[direction].expected
            share = np.diff([0.0, *(100.0 * np.mean(ranks <= limit) for limit in limits)])
            x = np.arange(len(names)) + (place - (len(report.directions) - 1) / 2) * width
            axes.bar(x, share, width * 0.9, color=colour)
            for at, value in zip(x, share, strict=True):
                axes.text(at, value + 1, f"{value:.0f}", ha="center", color=INK, fontsize=8)
            axes.text(0.98, 0.9 - 0.09 * place, direction, transform=axes.transAxes, ha="right", color=colour)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("rank of the best right answer")
        axes.set_ylim(0, None)
        axes.margins(y=0.12)
        axes.xaxis.grid(visible=False)

    return [
        Figure("Recall@k", "percent of the queries answered within the first k", _draw(cumulated, "cumulated")),
        Figure("Ranks in classes", "percent of the queries", _draw(classes, "classes")),
    ]


def similarity_figures(directions: Mapping[str, QueryResults]) -> list[Figure]:
    """Draw per direction how the scores of all positives and of each query's hardest negative are distributed."""
    return [
        Figure(
            f"Similarity, {direction}",
            "percent of all positives, and of each query's hardest negative",
            _draw(_histogram(results), f"similarity {direction}"),
        )
        for direction, results in directions.items()
    ]


def _histogram(results: QueryResults) -> Callable[[Any], None]:
    kinds = [("positives", results.positive_scores_P, BLUE)]
    if np.isfinite(results.hardest_Q).any():  # a gallery of positives alone has no negatives
        kinds.append(("hardest negatives", results.hardest_Q[np.isfinite(results.hardest_Q)], ORANGE))
    edges = np.histogram_bin_edges(np.concatenate([scores for _, scores, _ in kinds]).astype(np.float64), BINS)

    def draw(axes: Any) -> None:
        for place, (label, scores, colour) in enumerate(kinds):
            share = 100.0 * np.histogram(scores, edges)[0] / len(scores)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(share, edges, color=colour, linewidth=1.8)
            axes.text(0.02, 0.9 - 0.09 * place, label, transform=axes.transAxes, color=colour)
        axes.set_ylim(0, None)
        axes.margins(y=0.2)
        axes.set_xlabel("score")

    return draw


def compared_figures(a: Report, b: Report, names: Sequence[str]) -> list[Figure]:
    """Draw recall@k of two runs, per direction."""

    def curves(direction: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for place, (report, name, colour) in enumerate(zip((a, b), names, (BLUE, ORANGE), strict=True)):
                _recall_curve(axes, report, direction, colour)
                axes.text(0.98, 0.15 - 0.09 * place, name, transform=axes.transAxes, ha="right", color=colour)
            _ranks_below(axes)

        return draw

    return [
        Figure(f"Recall@k, {direction}", "percent of the queries", _draw(curves(direction), f"recall {direction}"))
        for direction in a.directions
    ]


def _recall_curve(axes: Any, report: Report, direction: str, colour: str) -> None:
    ranks, counts = np.unique(report.ranks[direction].expected, return_counts=True)
    share = 100.0 * np.cumsum(counts) / counts.sum()
    axes.step(np.r_[ranks, report.gallery(direction)], np.r_[share, 100.0], where="post", color=colour, linewidth=1.8)


def _ranks_below(axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_xlim(1, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(0, 103)
    axes.set_xlabel("k (log scale)")


def _curves(heading: str, note: str, history: History, curves: Sequence[Curve]) -> Figure | None:
    rows = {curve.key: [row for row in history if _is_number(row.get(curve.key))] for curve in curves}
    curves = [curve for curve in curves if rows[curve.key]]
    if not curves:
        return None
    axis = _axis([rows[curve.key] for curve in curves])

    def draw(axes: Any) -> None:
        ends = []
        for curve in curves:
            x = [row[axis] for row in rows[curve.key]]
            y = [row[curve.key] for row in rows[curve.key]]
            marker = "o" if len(x) == 1 else None
            axes.plot(x, y, curve.style, color=curve.colour, linewidth=1.8, marker=marker)
            ends.append((x[-1], y[-1], curve.label, curve.colour))
        axes.set_xlabel(axis.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _label_ends(axes, ends)

    return Figure(heading, note, _draw(draw, heading))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _axis(series: Sequence[History]) -> str:
    """Return the friendliest key that every row has and that advances from row to row of each curve."""
    for key in ("epoch", "step", "samples_seen"):
        values = [[row.get(key) for row in rows] for rows in series]
        numbers = all(_is_number(value) for curve in values for value in curve)
        if numbers and all(bool((np.diff(np.array(curve, float)) > 0).all()) for curve in values):
            return key
    return "step"


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each curve's label beside its end, moved apart where ends are close."""
    low, high = axes.get_ylim()
    gap = 0.085 * (high - low)
    ordered = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _, _ in ordered:
        places.append(max(y, places[-1] + gap) if places else y)
    ceiling = high
    for i in reversed(range(len(places))):  # the pile may have grown over the top: press it down again
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    right = axes.get_xlim()[1]
    for (_, _, label, colour), y in zip(ordered, places, strict=True):
        axes.annotate(
            label, (right, y), xytext=(4, 0), textcoords="offset points", va="center", color=colour,
            annotation_clip=False,
        )  # fmt: skip


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": salt,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "ytick.major.size": 0,
        "axes.xmargin": 0.01,
    }
    with mpl.rc_context(settings):
        yield


def _draw(paint: Callable[[Any], None], salt: str) -> str:
    # The figure is made without pyplot, which would keep it alive and choose a window system.
    from matplotlib.figure import Figure as Canvas

    with _style(salt):
        canvas = Canvas(figsize=SIZE, layout="constrained")
        paint(canvas.subplots())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue())


def _for_page(svg: str) -> str:
    """Take a matplotlib SVG document to an inline SVG that scales, without namespaces, fonts or colours of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*?viewBox=(\"[^\"]*\")[^>]*>", r'<svg viewBox=\1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, of_page in PAGE_COLOURS.items():
        svg = svg.replace(colour, of_page)
    return svg
