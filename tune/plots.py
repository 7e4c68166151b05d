"""The one figure of a search, as PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allpairs.files import replacing
from tune.config import Search
from tune.results import ranked
from tune.settings import Setting
from tune.space import describe, short_key, short_value

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


def draw(path: Path, settings: Sequence[Setting], search: Search) -> None:
    """Draw `search.plot` of `settings`, all measured, to `path` (PNG) and beside it as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        if search.plot == "curves":
            draw_curves(figure, settings, search)
        elif axes := plane(settings, search):
            draw_plane(figure, settings, search, *axes)
        else:
            draw_parameters(figure, settings, search)
        for file, metadata in ((path, {}), (path.with_suffix(".svg"), {"Date": None})):
            with replacing(file) as partial:
                figure.savefig(partial, format=file.suffix[1:], metadata=metadata)


def metric_label(search: Search) -> str:
    """Name the searched metric with its unit."""
    if search.metric == "val/rsum":
        return "best validation RSUM\n(sum of six recalls in %)"
    unit = " (%)" if "/r" in search.metric or "recall" in search.metric else ""
    return f"best {search.metric}{unit}"


def plane(settings: Sequence[Setting], search: Search) -> tuple[str, str] | None:
    """Return the two searched keys if there are two, both numbers from a grid or a list; else None."""
    keys = list(search.space)
    if len(keys) != 2 or any(search.space[key].kind not in ("grid", "choice") for key in keys):
        return None
    return (keys[0], keys[1]) if all(_is_number(setting.values[key]) for key in keys for setting in settings) else None


def draw_plane(figure: "Figure", settings: Sequence[Setting], search: Search, key_y: str, key_x: str) -> None:
    """Draw the best metric of two numeric keys as an annotated heat map; repeated points show their best."""
    import numpy as np
    from matplotlib.colors import Normalize

    xs, ys = (sorted({float(setting.values[key]) for setting in settings}) for key in (key_x, key_y))
    cells = np.full((len(ys), len(xs)), np.nan)
    deviations = np.full((len(ys), len(xs)), np.nan)
    for setting in reversed(ranked(settings, search)):  # the best last, so that it is what a repeated point shows
        spread = setting.spread(search.metric, search.mode)
        assert spread is not None
        place = ys.index(float(setting.values[key_y])), xs.index(float(setting.values[key_x]))
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
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.set(xlabel=short_key(key_x), ylabel=short_key(key_y), title=search.name)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label=metric_label(search))


def draw_parameters(figure: "Figure", settings: Sequence[Setting], search: Search) -> None:
    """Draw the best metric of every setting against each searched key, one panel a key; the best is marked.

    Bars are one standard deviation over seeds.
    """
    figure.set_size_inches(max(4.5, 3.6 * len(search.space)), 3.6)
    panels = figure.subplots(1, len(search.space), sharey=True, squeeze=False)[0]
    order = ranked(settings, search)
    spreads = [spread for setting in order if (spread := setting.spread(search.metric, search.mode)) is not None]
    heights = [spread.mean for spread in spreads]
    bars = [spread.deviation or 0.0 for spread in spreads]
    for axes, (key, domain) in zip(panels, search.space.items(), strict=True):
        values = [setting.values[key] for setting in order]
        if all(_is_number(value) for value in values):
            places = [float(value) for value in values]
            if domain.kind == "loguniform":
                _log_axis(axes, *domain.probes)
        else:
            names = sorted({short_value(value) for value in values})
            places = [float(names.index(short_value(value))) for value in values]
            axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
            axes.set_xlim(-0.5, len(names) - 0.5)
        if any(bars):
            axes.errorbar(places, heights, bars, fmt="none", ecolor="0.4", elinewidth=1, capsize=3)
        axes.scatter(places, heights, s=36, color="tab:blue", alpha=0.75)
        axes.scatter(places[:1], heights[:1], s=140, marker="*", color="tab:orange", zorder=3)
        axes.annotate(f"{heights[0]:.4g}", (places[0], heights[0]), xytext=(8, 2), textcoords="offset points")
        axes.set_xlabel(short_key(key) if "." in key else key)
    panels[0].set_ylabel(metric_label(search))
    figure.suptitle(search.name, weight="bold")


def draw_curves(figure: "Figure", settings: Sequence[Setting], search: Search) -> None:
    """Draw loss, RSUM and similarities against epochs, one colour a setting (the mean of its seeds).

    The panels of Figures 3 and 4 of "Unified Loss of Pair Similarity Optimization for Vision-Language Retrieval": the
    similarity of positives (solid) and of hardest negatives (dashed) shows a collapse that the loss alone hides.
    """
    figure.set_size_inches(13, 3.8)
    left, middle, right = figure.subplots(1, 3)
    for number, setting in enumerate(settings):
        colour, label, history = f"C{number}", describe(setting.values), setting.history
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


def _log_axis(axes: "Axes", low: float, high: float) -> None:
    """Show the whole searched range in its logarithm, with few enough plain numbers to stand side by side."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    pad = (high / low) ** 0.06
    axes.set_xlim(low / pad, high * pad)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 1e3 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
