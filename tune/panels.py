"""Figures of a search with a panel for each searched key: scattered draws, or a line through one key's values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune.config import Search
from tune.results import ranked
from tune.settings import Setting
from tune.space import Domain, short_key, short_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 4
"""Panels side by side at most."""


@dataclass(frozen=True)
class Axis:
    """What one panel shows: a searched key, or one element of its list."""

    key: str
    domain: Domain
    element: int | None = None

    @property
    def label(self) -> str:
        """Its name under the panel."""
        return short_key(self.key) + ("" if self.element is None else f"[{self.element}]")

    def of(self, setting: Setting) -> Any:
        """Return its value in `setting`, None where that has none."""
        value = setting.values.get(self.key)
        return value if self.element is None or value is None else value[self.element]


def axes_of(search: Search) -> list[Axis]:
    """Return the panels of a search: its keys, of a list each element that is drawn."""
    axes = []
    for key, domain in search.space.items():
        if domain.each is None:
            axes.append(Axis(key, domain))
        axes += [Axis(key, one, place) for place, one in enumerate(domain.each or ()) if isinstance(one, Domain)]
    return axes


def draw_parameters(figure: "Figure", settings: Sequence[Setting], search: Search) -> None:
    """Draw the best metric of every setting against each key that it has, one panel a key; the best is marked.

    Bars are one standard deviation over seeds, horizontal lines the references.
    """
    order = ranked([setting for setting in settings if not setting.reference], search)
    axes = axes_of(search)
    for panel, axis in zip(_panels(figure, len(axes), search), axes, strict=True):
        shown = [setting for setting in order if axis.of(setting) is not None]
        heights, bars = _heights(shown, search)
        places = _places(panel, axis, shown)
        if any(bars):
            panel.errorbar(places, heights, bars, fmt="none", ecolor="0.4", elinewidth=1, capsize=3)
        panel.scatter(places, heights, s=36, color="tab:blue", alpha=0.75)
        if shown and shown[0] is order[0]:
            panel.scatter(places[:1], heights[:1], s=140, marker="*", color="tab:orange", zorder=3)
            panel.annotate(f"{heights[0]:.4g}", (places[0], heights[0]), xytext=(8, 2), textcoords="offset points")
        panel.set_xlabel(axis.label if "." in axis.key else axis.key)
    _finish(figure, settings, search)


def draw_lines(figure: "Figure", settings: Sequence[Setting], search: Search, home: Mapping[str, Any]) -> None:
    """Draw the best metric against one key at a time, a line a panel, the other keys as in `home`.

    The form of Figure 5 of "Unified Loss of Pair Similarity Optimization for Vision-Language Retrieval", where VLC and
    the hard-negative triplet loss are the horizontal lines.
    """
    points = [setting for setting in settings if not setting.reference]
    axes = axes_of(search)
    for panel, axis in zip(_panels(figure, len(axes), search), axes, strict=True):
        others = {key: value for key, value in home.items() if key != axis.key}
        values = axis.domain.probes
        shown = [setting for setting in points if others.items() <= setting.values.items()]
        shown = sorted((one for one in shown if axis.of(one) in values), key=lambda one: values.index(axis.of(one)))
        heights, bars = _heights(shown, search)
        panel.errorbar(_places(panel, axis, shown), heights, bars if any(bars) else None, marker="o", capsize=3)
        kept = ", ".join(f"{short_key(key)} = {short_value(value)}" for key, value in others.items())
        panel.set(xlabel=axis.label, title=kept)
    _finish(figure, settings, search)


def draw_references(axes: "Axes", references: Sequence[Setting], search: Search) -> list[float]:
    """Draw the best metric of each reference as a horizontal line with its deviation over seeds; return the heights."""
    heights, bars = _heights(references, search)
    for number, (setting, height, bar) in enumerate(zip(references, heights, bars, strict=True)):
        style: dict[str, Any] = {"color": f"C{number + 1}", "zorder": 1}
        axes.axhline(height, linestyle=("--", ":", "-.")[number % 3], label=setting.name, **style)
        if bar:
            axes.axhspan(height - bar, height + bar, alpha=0.12, linewidth=0, **style)
    return heights


def name_references(figure: "Figure", axes: "Axes") -> None:
    """Name below the figure the lines that :func:`draw_references` drew on `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))


def metric_label(search: Search) -> str:
    """Name the searched metric with its unit."""
    if search.metric == "val/rsum":
        return "best validation RSUM\n(sum of six recalls in %)"
    unit = " (%)" if "/r" in search.metric or "recall" in search.metric else ""
    return f"best {search.metric}{unit}"


def is_number(value: Any) -> bool:
    """Say whether `value` has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _panels(figure: "Figure", count: int, search: Search) -> list["Axes"]:
    columns = min(count, _ROW)
    rows = -(-count // columns)
    figure.set_size_inches(max(4.5, 3.6 * columns), 3.6 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for row in grid:
        row[0].set_ylabel(metric_label(search))
    for spare in grid.flat[count:]:
        spare.set_axis_off()
    return list(grid.flat[:count])


def _finish(figure: "Figure", settings: Sequence[Setting], search: Search) -> None:
    references = [setting for setting in settings if setting.reference]
    panels = [panel for panel in figure.axes if panel.axison]
    for panel in panels:
        draw_references(panel, references, search)
    if references:
        name_references(figure, panels[0])
    figure.suptitle(search.name, weight="bold")


def _heights(settings: Sequence[Setting], search: Search) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each; all are measured."""
    spreads = [spread for one in settings if (spread := one.spread(search.metric, search.mode)) is not None]
    return [spread.mean for spread in spreads], [spread.deviation or 0.0 for spread in spreads]


def _places(panel: "Axes", axis: Axis, settings: Sequence[Setting]) -> list[float]:
    """Return where `settings` stand on the axis, which is made to fit: numbers, or names side by side."""
    values = [axis.of(setting) for setting in settings]
    if all(map(is_number, values)):
        if axis.domain.kind == "loguniform":
            _log_axis(panel, *axis.domain.probes)
        return [float(value) for value in values]
    names = sorted({short_value(value) for value in values})
    panel.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
    panel.set_xlim(-0.5, len(names) - 0.5)
    return [float(names.index(short_value(value))) for value in values]


def _log_axis(axes: "Axes", low: float, high: float) -> None:
    """Show the whole searched range in its logarithm, with few enough plain numbers to stand side by side."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    pad = (high / low) ** 0.06
    axes.set_xlim(low / pad, high * pad)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 1e3 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
