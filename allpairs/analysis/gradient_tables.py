"""The tables of the gradient analysis on a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from allpairs.analysis.gradients import TangentialNorms
from allpairs.analysis.spreading import Point, vanishing_order

if TYPE_CHECKING:
    from rich.table import Table


def synthetic_table(points: Sequence[Point], title: str) -> "Table":
    """Return each objective's norms at the widest and the narrowest noise, and the order at which they vanish."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("objective", no_wrap=True)
    for measure in ("anchor", "neg."):
        for point in (points[0], points[-1]):
            table.add_column(f"{measure}\n{point.source}", justify="right")
        table.add_column("∝\nnoise^", justify="right")
    for label in points[0].norms:
        cells = []
        for measure in ("anchor", "negative"):
            cells += [f"{getattr(point.norms[label], measure):.1e}" for point in (points[0], points[-1])]
            order = vanishing_order(points, label, measure)
            cells.append("–" if order is None else f"{order:.2f}")
        table.add_row(label, *cells)
    return table


def embeddings_table(point: Point) -> "Table":
    """Return all four norms of each objective under one set of real embeddings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=f"{point.source}: tangential norms, mean over anchors",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("objective", no_wrap=True)
    for measure in TangentialNorms._fields:
        table.add_column(measure, justify="right")
    for label, norms in point.norms.items():
        table.add_row(label, *(f"{value:.1e}" for value in norms))
    return table
