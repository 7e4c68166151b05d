"""The figures of the triplet diagrams."""

from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from allpairs.analysis.diagrams import Diagram, axis, pair_weights, triplet_weights
from allpairs.analysis.figure import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ARROWS = 11
"""Arrows per axis."""
_CURVE_POINTS = 201


def draw_triplet_weights(path: Path, points: int) -> Path:
    """Draw T over the plane with its lines of equal weight, as G Fig. 2."""

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, 3, sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, weight_PP) in zip(panels, triplet_weights(points).items(), strict=True):
            _heat(figure, axes, weight_PP, f"T {name}")
            if name != "con":
                similarity_P = axis(points).numpy()
                levels = (0.1, 0.3, 0.5, 0.7, 0.9)
                axes.contour(similarity_P, similarity_P, weight_PP.numpy(), levels, colors="white", linewidths=0.7)
        _name_axes(panels, panels[:1])

    return save(path, (10, 3.2), draw)


def draw_pair_weights(path: Path) -> Path:
    """Draw P₊ over s_pos and P₋ over s_neg, as G Fig. 3; the relative terms are 0.1."""

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        similarity_P = axis(_CURVE_POINTS).numpy()
        for name, (positive_P, negative_P) in pair_weights(_CURVE_POINTS).items():
            left.plot(similarity_P, positive_P.numpy(), label=name)
            right.plot(similarity_P, negative_P.numpy(), label=name)
        for axes, title, of in ((left, "P₊", "positive"), (right, "P₋", "negative")):
            axes.set(title=title, xlabel=f"similarity of the {of}")
            axes.grid(alpha=0.25)
        left.set_ylabel("pair weight")
        right.legend()

    return save(path, (8, 3.4), draw)


def draw_diagrams(path: Path, diagrams: Sequence[Diagram], columns: int = 5) -> Path:
    """Draw the magnitude of each objective's weights over the plane, and arrows along minus the gradient in it."""
    rows = ceil(len(diagrams) / columns)

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        panels = grid.ravel()
        for axes, one in zip(panels, diagrams, strict=False):
            _heat(figure, axes, one.magnitude, one.label.removeprefix("goal"))
            _arrows(axes, one)
        for axes in panels[len(diagrams) :]:
            axes.remove()
        _name_axes(panels[max(0, len(diagrams) - columns) : len(diagrams)], grid[:, 0])

    return save(path, (2.9 * columns, 2.5 * rows), draw)


def _heat(figure: "Figure", axes: "Axes", weight_PP: Tensor, title: str) -> None:
    edge = 1 + 1 / (len(weight_PP) - 1)  # pixels are centred on the grid points
    image = axes.imshow(weight_PP.numpy(), origin="lower", extent=(-edge, edge, -edge, edge), cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, shrink=0.85)
    axes.set_title(title, fontsize=8)


def _arrows(axes: "Axes", one: Diagram) -> None:
    """Where a step along minus the gradient moves a triplet; lengths relative to the panel's longest."""
    points = len(one.pull)
    picked = [round((index + 0.5) * (points - 1) / _ARROWS) for index in range(_ARROWS)]
    similarity_P = axis(points)[picked].numpy()
    right_PP, up_PP = one.pull[picked][:, picked].numpy(), -one.push[picked][:, picked].numpy()
    longest = float(one.magnitude[picked][:, picked].max())
    if longest > 0:
        axes.quiver(
            similarity_P, similarity_P, right_PP / longest, up_PP / longest,
            color="white", angles="xy", scale_units="xy", scale=5, width=0.006,
        )  # fmt: skip


def _name_axes(bottom: "Iterable[Axes]", left: "Iterable[Axes]") -> None:
    for axes in bottom:
        axes.set_xlabel("s positive")
        axes.tick_params(labelbottom=True)
    for axes in left:
        axes.set_ylabel("s negative")
