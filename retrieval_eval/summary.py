"""The metrics as a table for the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retrieval_eval.metrics import label, number
from retrieval_eval.report import Report

if TYPE_CHECKING:
    from rich.table import Table


def table(
    report: Report, title: str | None = None, intervals: Mapping[str, tuple[float, float]] | None = None
) -> "Table":
    """Return a rich table of `report`: a metric per row and a direction per column, RSUM and the tied queries below.

    With `intervals` a second column per direction gives half of the interval's width.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text(title) if title is not None else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("")
    for direction in report.directions:
        shown.add_column(direction, justify="right", no_wrap=True)
        if intervals is not None:
            shown.add_column("±", justify="right", no_wrap=True)
    forward = f"{report.directions[0]}/"
    for metric in (name.removeprefix(forward) for name in report.metrics if name.startswith(forward)):
        cells = []
        for direction in report.directions:
            name = f"{direction}/{metric}"
            cells.append(number(name, report.metrics[name]))
            if intervals is not None:
                cells.append(number(name, half_width(intervals[name])))
        shown.add_row(label(metric), *cells)
    for name, size in (("queries", report.queries), ("gallery", report.gallery)):
        cells = []
        for direction in report.directions:
            cells += [f"{size(direction):,}", *([""] if intervals is not None else [])]
        shown.add_row(name, *cells)
    shown.caption = _below(report, intervals)
    return shown


def half_width(interval: tuple[float, float]) -> float:
    """Return half of an interval's width: what is written after ±."""
    return (interval[1] - interval[0]) / 2


def _below(report: Report, intervals: Mapping[str, tuple[float, float]] | None) -> str:
    parts = []
    if "rsum" in report.metrics:
        width = f" ± {half_width(intervals['rsum']):.1f}" if intervals is not None else ""
        parts.append(f"RSUM {report.metrics['rsum']:.1f}{width}")
    tied = {direction: count for direction, count in report.tied_queries.items() if count}
    if not tied:
        return " · ".join([*parts, "no ties"])
    parts.append("tied queries: " + ", ".join(f"{direction} {count:,}" for direction, count in tied.items()))
    if "rsum" in report.metrics:
        low, high = (f"{report.ties[treatment]['rsum']:.1f}" for treatment in ("pessimistic", "optimistic"))
        if low != high:
            parts.append(f"RSUM {low} to {high} by their order")
    return " · ".join(parts)
