"""How figures are drawn: SVG with the colours and the font of the page, so that one drawing suits light and dark."""

import html
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

# matplotlib wants real colours: each stands for a CSS colour of the page, put in its place in the finished SVG.
INK, GRID = "#010101", "#010102"
BLUE, ORANGE = "#010103", "#010104"
PAGE_COLOURS = {INK: "var(--muted)", GRID: "var(--line)", BLUE: "var(--first)", ORANGE: "var(--second)"}
PARTS = {f"#0102{number:02x}": f"var(--part-{number})" for number in range(1, 9)}
"""As many colours that stand beside each other."""
SIZE = (5.0, 3.0)  # inches, at 72 units each in the viewBox
TEXT = 10.5  # units: over 10 px where the drawing is 358 px wide, on a phone of 390
LINE = 0.105  # of the drawing's height, from one label to the next

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """One drawing, its heading and a note."""

    heading: str
    note: str
    svg: str


def in_words(axes: str, told: Mapping[str, str]) -> str:
    """Describe a drawing: its axes, and what each of its lines or areas does."""
    return f"{axes}. {'; '.join(f'{name}: {what}' for name, what in told.items())}."


def is_number(value: Any) -> bool:
    """Whether it can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def axis_of(series: Sequence[History]) -> str:
    """Return the friendliest key that every row has and that advances from row to row of each curve."""
    for key in ("epoch", "step", "samples_seen"):
        values = [[row.get(key) for row in rows] for rows in series]
        numbers = all(is_number(value) for curve in values for value in curve)
        if numbers and all(bool((np.diff(np.array(curve, float)) > 0).all()) for curve in values):
            return key
    return "step"


def label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each curve's label beside its end, moved apart where ends are close."""
    low, high = axes.get_ylim()
    gap = LINE * (high - low)
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
        "font.size": TEXT,
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


def draw(paint: Callable[[Any], None], words: str) -> str:
    """Return a drawing that is named by `words`."""
    # The figure is made without pyplot, which would keep it alive and choose a window system.
    from matplotlib.figure import Figure as Canvas

    with _style(words):
        canvas = Canvas(figsize=SIZE, layout="constrained")
        paint(canvas.subplots())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue(), words)


def _for_page(svg: str, words: str) -> str:
    """Take a matplotlib SVG document to an inline SVG that scales, without namespaces, fonts or colours of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    view = re.search(r"<svg[^>]*?viewBox=(\"[^\"]*\")[^>]*>", svg)
    assert view is not None, "matplotlib's SVG begins with its viewBox"
    svg = f'<svg viewBox={view[1]} role="img" aria-label="{html.escape(words)}">{svg[view.end() :]}'
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, of_page in (PAGE_COLOURS | PARTS).items():
        svg = svg.replace(colour, of_page)
    return svg
