"""The figure of the counts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from allpairs.analysis.cocos import DIRECTIONS, Cocos
from allpairs.analysis.contributing import RELATIVE
from allpairs.analysis.figure import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_counts(path: Path, rows: Sequence[Cocos]) -> Path:
    """Draw the comparable count of each row, both directions, with its standard deviation over batches."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        thickness = 0.4
        for index, direction in enumerate(DIRECTIONS):
            counts = [row.counts[direction][RELATIVE] for row in rows]
            places = [place + (index - 0.5) * thickness for place in range(len(rows))]
            means, deviations = [count.mean for count in counts], [count.std for count in counts]
            axes.barh(places, means, thickness, xerr=deviations, label=direction, error_kw={"linewidth": 0.8})
        axes.set_yticks(range(len(rows)), [" · ".join(filter(None, (row.run, row.objective))) for row in rows])
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.set_xlabel(f"samples with |W| > {rows[0].setup.epsilon:g} of the anchor's largest, mean over anchors")
        axes.legend()

    return save(path, (8, 1.2 + 0.35 * len(rows)), draw)
