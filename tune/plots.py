"""The one figure of a search, as PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allpairs.files import replacing
from tune.config import Search
from tune.panels import draw_lines, draw_parameters, draw_references, is_number, metric_label, name_references
from tune.results import ranked
from tune.settings import Setting
from tune.space import short_key, short_value
from tune.trial import TrialPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "figure.dpi": 150,
    "svg.hashsalt": "allpairs",
}

PANELS = (
    ("Loss", "validation loss", "val/loss"),
    ("Retrieval", "validation RSUM\n(sum of six recalls in %)", "val/rsum"),
)


def draw(path: Path, settings: Sequence[Setting], plan: TrialPlan) -> None:
    """Draw the `plot` of a search's `settings`, all measured, to `path` (PNG) and beside it as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    search = plan.search

    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        if search.plot == "curves":
            draw_curves(figure, settings, search)
        elif search.algorithm == "one_at_a_time":
            draw_lines(figure, settings, search, plan.home)
        elif axes := plane(settings, search):
            draw_plane(figure, settings, search, *axes)
        else:
            draw_parameters(figure, settings, search)
        for file, metadata in ((path, {}), (path.with_suffix(".svg"), {"Date": None})):
            with replacing(file) as partial:
                figure.savefig(partial, format=file.suffix[1:], metadata=metadata)


def plane(settings: Sequence[Setting], search: Search) -> tuple[str, str] | None:
    """Return the two searched keys if there are two, both numbers or both words from a grid or a list; else None."""
    keys = list(search.space)
    if len(keys) != 2 or any(search.space[key].kind not in ("grid", "choice") for key in keys):
        return None
    values = [setting.values.get(key) for key in keys for setting in settings if not setting.reference]
    alike = all(map(is_number, values)) or all(isinstance(value, str) for value in values)
    return (keys[0], keys[1]) if values and alike else None


def draw_plane(figure: "Figure", settings: Sequence[Setting], search: Search, key_y: str, key_x: str) -> None:
    """Draw the best metric of two keys as an annotated heat map; repeated points show their best.

    References are lines across the colour bar.
    """
    import numpy as np
    from matplotlib.colors import Normalize

    references = [setting for setting in settings if setting.reference]
    settings = [setting for setting in settings if not setting.reference]
    xs, ys = (_ticks(settings, search, key) for key in (key_x, key_y))
    cells = np.full((len(ys), len(xs)), np.nan)
    deviations = np.full((len(ys), len(xs)), np.nan)
    for setting in reversed(ranked(settings, search)):  # the best last, so that it is what a repeated point shows
        spread = setting.spread(search.metric, search.mode)
        assert spread is not None
        place = ys.index(setting.values[key_y]), xs.index(setting.values[key_x])
        cells[place] = spread.mean
        deviations[place] = np.nan if spread.deviation is None else spread.deviation
    figure.set_size_inches(2.2 + 1.1 * len(xs), 1.6 + 0.8 * len(ys))
    axes = figure.subplots()
    image = axes.imshow(cells, cmap="viridis", origin="lower", aspect="auto")
    assert isinstance(image.norm, Normalize)
    for row, column in np.argwhere(np.isfinite(cells)):
        value = cells[row, column]
        winner = value == (np.nanmax if search.mode == "max" else np.nanmin)(cells)
        colour = "black" if image.norm(value) > 0.6 else "white"
        weight = "bold" if winner else "normal"
        deviation = deviations[row, column]
        text = f"{value:.4g}" if np.isnan(deviation) else f"{value:.4g}\n±{deviation:.2g}"
        axes.text(column, row, text, ha="center", va="center", color=colour, weight=weight)
    axes.set_xticks(range(len(xs)), list(map(short_value, xs)))
    axes.set_yticks(range(len(ys)), list(map(short_value, ys)))
    axes.set(xlabel=short_key(key_x), ylabel=short_key(key_y), title=search.name)
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, label=metric_label(search)).ax
    levels = draw_references(bar, references, search)
    if levels:
        low, high = min(*levels, bar.get_ylim()[0]), max(*levels, bar.get_ylim()[1])
        bar.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        name_references(figure, bar)


def _ticks(settings: Sequence[Setting], search: Search, key: str) -> list[Any]:
    """Return the values of `key` that were measured: numbers by size, words in the order of the file."""
    found = [value for value in search.space[key].probes if any(one.values[key] == value for one in settings)]
    return sorted(set(found)) if all(map(is_number, found)) else list(dict.fromkeys(found))


def draw_curves(figure: "Figure", settings: Sequence[Setting], search: Search) -> None:
    """Draw loss, RSUM and similarities against epochs, one colour a setting (the mean of its seeds).

    The panels of Figures 3 and 4 of "Unified Loss of Pair Similarity Optimization for Vision-Language Retrieval": the
    similarity of positives (solid) and of hardest negatives (dashed) shows a collapse that the loss alone hides.
    """
    figure.set_size_inches(13, 3.8)
    left, middle, right = figure.subplots(1, 3)
    for number, setting in enumerate(settings):
        colour, label, history = f"C{number}", setting.name, setting.history
        for axes, (_, _, metric) in zip((left, middle), PANELS, strict=True):
            _line(axes, history, metric, color=colour, label=label)
        _line(right, history, "val/positive_similarity", color=colour, label=label)
        _line(right, history, "val/hardest_negative_similarity", color=colour, linestyle="--")
    for axes, (title, label, _) in zip((left, middle), PANELS, strict=True):
        axes.set(title=title, xlabel="epoch", ylabel=label)
    if all(value > 0 for line in left.get_lines() for value in line.get_ydata()):
        left.set_yscale("log")
    middle.legend(loc="best")
    right.set(title="Similarity of pairs", xlabel="epoch", ylabel="cosine similarity")
    right.plot([], [], color="0.3", label="positive")
    right.plot([], [], color="0.3", linestyle="--", label="hardest negative")
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[-2:], labels[-2:], loc="best")
    figure.suptitle(search.name, weight="bold")


def _line(axes: "Axes", history: Sequence[Mapping[str, float]], metric: str, **style: Any) -> None:
    points = [(row["epoch"], row[metric]) for row in history if metric in row]
    axes.plot([epoch for epoch, _ in points], [value for _, value in points], marker="o", markersize=3, **style)
