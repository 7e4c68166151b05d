"""The metrics as a table for the terminal."""

from typing import TYPE_CHECKING

from retrieval_eval.evaluation import Report

if TYPE_CHECKING:
    from rich.table import Table


def table(report: Report, title: str | None = None) -> "Table":
    """Return a rich table of `report`: one row per direction, and RSUM and the tied queries below."""
    from rich import box
    from rich.table import Table

    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    shown.add_column("")
    headings = [*(f"R@{k}" for k in report.ks), "avg", "median", "mean", "mAP@5", "queries", "gallery"]
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for direction in report.directions:
        get = {name.split("/")[1]: value for name, value in report.metrics.items() if name.startswith(f"{direction}/")}
        shown.add_row(
            direction,
            *(f"{get[f'r{k}']:.1f}" for k in report.ks),
            f"{get['average_recall']:.1f}" if "average_recall" in get else "",
            f"{get['median_rank']:g}",
            f"{get['mean_rank']:.1f}",
            f"{get['map5']:.3f}",
            f"{report.queries(direction):,}",
            f"{report.gallery(direction):,}",
        )
    shown.caption = _below(report)
    return shown


def _below(report: Report) -> str:
    parts = [f"RSUM {report.metrics['rsum']:.1f}"] if "rsum" in report.metrics else []
    tied = {direction: number for direction, number in report.tied_queries.items() if number}
    if not tied:
        return " · ".join([*parts, "no ties"])
    parts.append("tied queries: " + ", ".join(f"{direction} {number:,}" for direction, number in tied.items()))
    if "rsum" in report.metrics:
        low, high = (report.ties[treatment]["rsum"] for treatment in ("pessimistic", "optimistic"))
        parts.append(f"RSUM {low:.1f} to {high:.1f} by their order")
    return " · ".join(parts)
