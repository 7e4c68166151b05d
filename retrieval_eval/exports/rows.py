"""A model's row for a paper's table, in the columns of Bleeker and de Rijke (ECIR 2022), Table 1.

Image to text: R@1, R@5, R@10, average recall, mAP@5; text to image: R@1, R@5, R@10, average recall; RSUM. A ± is half
of the 95 % interval over test images of one model. It is no standard deviation over training runs, as that table has.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from retrieval_eval.evaluation import RSUM, Report
from retrieval_eval.summary import half_width, label, number

COLUMNS = ("r1", "r5", "r10", "average_recall", "map5")
BACKWARD = COLUMNS[:-1]  # one positive per query: mAP@5 says nothing new
WHAT = "± half of the 95 % interval over test images"
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


def columns(report: Report) -> list[str]:
    """Return the metrics of the row, in order."""
    chosen = zip(report.directions, (COLUMNS, BACKWARD), strict=False)
    return [f"{direction}/{name}" for direction, names in chosen for name in names] + (
        ["rsum"] if "rsum" in report.metrics else []
    )


def markdown(name: str, report: Report, intervals: Mapping[str, tuple[float, float]] | None = None) -> str:
    """Return a table of a heading and one row."""
    metrics = columns(report)
    cells = [number(metric, report.metrics[metric]) for metric in metrics]
    if intervals is not None:
        cells = [f"{cell} ± {_width(metric, intervals)}" for cell, metric in zip(cells, metrics, strict=True)]
    shown = re.sub(r"\s+", " ", name).replace("|", "\\|")
    lines = [["model", *map(label, metrics)], ["---", *["---:"] * len(metrics)], [shown, *cells]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(name: str, report: Report, intervals: Mapping[str, tuple[float, float]] | None = None) -> str:
    """Return one row of a tabular, after a comment that names its columns."""
    metrics = columns(report)
    cells = [number(metric, report.metrics[metric]) for metric in metrics]
    if intervals is not None:
        cells = [rf"${cell} {{\pm}} {_width(metric, intervals)}$" for cell, metric in zip(cells, metrics, strict=True)]
    shown = "".join(LATEX.get(sign, sign) for sign in re.sub(r"\s+", " ", name))
    heading = " & ".join(["model", *map(label, metrics)])
    note = f" ({WHAT})" if intervals is not None else ""
    return f"% {heading}{note}\n{' & '.join([shown, *cells])} \\\\\n"


def write_rows(
    folder: Path, name: str, report: Report, intervals: Mapping[str, tuple[float, float]] | None = None
) -> list[Path]:
    """Write ``rows.md`` and ``rows.tex`` and return them; nothing for recalls other than those at 1, 5 and 10."""
    if not set(RSUM) <= set(report.ks):
        return []
    below = f"\n{WHAT}.\n" if intervals is not None else ""
    contents = {
        "rows.md": markdown(name, report, intervals) + below,
        "rows.tex": latex(name, report, intervals),
    }
    for file, content in contents.items():
        (folder / file).write_text(content, encoding="utf-8")
    return [folder / file for file in contents]


def _width(metric: str, intervals: Mapping[str, tuple[float, float]]) -> str:
    return number(metric, half_width(intervals[metric]))
