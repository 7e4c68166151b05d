"""The figures of the gradient analysis."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from allpairs.analysis.figure import save
from allpairs.analysis.spreading import Point
from allpairs.analysis.variants import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = {"anchor": "anchor, U-Eq. 11", "negative": "strongest negative, U-Eq. 12, 18"}


def draw_spreading(path: Path, points: Sequence[Point], title: str, horizontal: str) -> Path:
    """Draw the norms of every objective against the spread `horizontal` ("positives" or "negatives") of similarities.

    One column per kind of objective, one row per measure; both axes logarithmic, so that a gradient that vanishes with
    the noise is a slope and one that stays is level.
    """

    def draw(figure: "Figure") -> None:
        figure.suptitle(title)
        labels = [*points[0].norms]
        columns = {kind: [label for label in labels if points[0].kinds[label] == kind] for kind in KINDS}
        grid = figure.subplots(len(_MEASURES), len(columns), sharex=True, sharey="row", squeeze=False)
        order = sorted(points, key=lambda point: getattr(point.spread, horizontal))
        spreads = [getattr(point.spread, horizontal) for point in order]
        for axes, heading in zip(grid[0], columns, strict=True):
            axes.set_title(heading)
        for row, (measure, name) in zip(grid, _MEASURES.items(), strict=True):
            for axes, members in zip(row, columns.values(), strict=True):
                for index, label in enumerate(members):
                    norms = [getattr(point.norms[label], measure) for point in order]
                    style = ("-", "--", ":")[index % 3]
                    axes.plot(spreads, norms, style, marker="o", markersize=2.5, label=label.removeprefix("goal"))
                axes.set(xscale="log", yscale="log")
                axes.grid(alpha=0.25)
            row[0].set_ylabel(f"tangential norm\n({name})")
        for axes, members in zip(grid[-1], columns.values(), strict=True):
            axes.set_xlabel(f"spread: mean of 1 − s over {horizontal}")
            axes.legend(fontsize=6, ncols=2 if len(members) > 10 else 1)

    return save(path, (13, 7.5), draw)
