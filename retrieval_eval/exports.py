"""`write_exports`: every export of one measurement in one folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from allpairs.files import replacing, write_text
from retrieval_eval.folds import Gallery, MeasuredFold
from retrieval_eval.metrics import RECALLS, definitions, label, notes, number
from retrieval_eval.report import Report
from retrieval_eval.shortlist import Shortlist, shortlist
from retrieval_eval.summary import half_width

if TYPE_CHECKING:
    import pyarrow as pa

DEPTH = 100  # answers per query in a TREC run
FILES = ("queries_*.parquet", "run_*.trec", "qrels_*.trec", "rows.md", "rows.tex")


def write_exports(
    folder: Path,
    name: str,
    report: Report,
    folds: Sequence[MeasuredFold],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    *,
    note: str | None = None,
) -> list[Path]:
    """Write into `folder`, which is made if need be, and return the files.

    ``queries_<direction>.parquet``, ``run_<direction>.trec``, ``qrels_<direction>.trec``; ``rows.md``, ``rows.tex``.
    `name` is the model's, for the rows and the runs. The queries are those of `folds`, one after the other. The rows
    carry `note`, one line on how they came about.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for direction in report.directions:
        answers = [_answers(fold, direction) for fold in folds]
        files.append(write_queries(folder / f"queries_{direction}.parquet", direction, folds, answers))
        files += write_trec(folder, direction, name, folds, answers)
    return [*files, *write_rows(folder, name, report, intervals, note)]


def _answers(fold: MeasuredFold, direction: str) -> Shortlist:
    asking, answering = fold.asking[direction].embeddings, fold.answering[direction].embeddings
    return shortlist(asking, answering, DEPTH, cosine=fold.report.cosine)


TOP = 10  # answers listed per query


def write_queries(path: Path, direction: str, folds: Sequence[MeasuredFold], answers: Sequence[Shortlist]) -> Path:
    """Write a Parquet file and return its path; the columns:

    - ``direction``, ``query`` (its name here and in the TREC files), ``image_id``, ``text`` (a caption, or an image's
      key), ``rank`` (expected, of the best positive), and every value of `Report.per_query`;
    - per positive, in one order: ``positives`` (names), ``positive_scores``, ``positive_ranks`` (expected over the
      orders of tied items: the mean place of the tie), and the integers they come from, ``positive_greater`` and
      ``positive_equal`` (gallery items above and level, itself included);
    - ``top`` and ``top_scores``: the ten best gallery items, best first.

    A value with more than one definition in the field has its own in its column's metadata, as ``definition``.
    """
    import pyarrow.parquet as pq

    tables = [_table(direction, fold, found) for fold, found in zip(folds, answers, strict=True)]
    with replacing(path) as partial, pq.ParquetWriter(partial, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return path


def _table(direction: str, fold: MeasuredFold, found: Shortlist) -> "pa.Table":
    import pyarrow as pa

    asking, answering = fold.asking[direction], fold.answering[direction]
    positives, counts = fold.report.positives[direction], fold.report.counts[direction]
    names = _names(answering)

    def lists(offsets: np.ndarray, values: "pa.Array") -> "pa.Array":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)

    values = fold.report.per_query[direction]
    defined = definitions(name for name in values if name != "rank")
    k = min(TOP, found.indices.shape[1])
    every_k = np.arange(len(asking) + 1) * k
    table = pa.table(
        {
            "direction": pa.array([direction] * len(asking)),
            "query": _names(asking),
            "image_id": pa.array(asking.ids),
            "text": pa.array(list(asking.labels), pa.string()),
            **{name: pa.array(each) for name, each in values.items()},
            "positives": lists(positives.offsets, names.take(pa.array(positives.indices))),
            "positive_scores": lists(positives.offsets, pa.array(counts.score)),
            "positive_ranks": lists(positives.offsets, pa.array(counts.greater + (counts.equal + 1) / 2)),
            "positive_greater": lists(positives.offsets, pa.array(counts.greater)),
            "positive_equal": lists(positives.offsets, pa.array(counts.equal)),
            "top": lists(every_k, names.take(pa.array(found.indices[:, :k].ravel()))),
            "top_scores": lists(every_k, pa.array(found.scores[:, :k].ravel())),
        }
    )
    fields = [
        field.with_metadata({"definition": defined[field.name]}) if field.name in defined else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _names(side: Gallery) -> "pa.Array":
    import pyarrow as pa

    return pa.array([side.name(row) for row in range(len(side))], pa.string())


def write_trec(
    folder: Path, direction: str, name: str, folds: Sequence[MeasuredFold], answers: Sequence[Shortlist]
) -> list[Path]:
    """Write ``run_<direction>.trec`` with the given answers and ``qrels_<direction>.trec``; return both paths."""
    tag = re.sub(r"\s+", "_", name.strip()) or "run"
    run, judgements = folder / f"run_{direction}.trec", folder / f"qrels_{direction}.trec"
    with run.open("w", encoding="utf-8") as lines, judgements.open("w", encoding="utf-8") as judged:
        for fold, found in zip(folds, answers, strict=True):
            asking, answering = fold.asking[direction], fold.answering[direction]
            names = [answering.name(row) for row in range(len(answering))]
            for row in range(len(asking)):
                query = asking.name(row)
                scored = zip(found.indices[row].tolist(), found.scores[row].tolist(), strict=True)
                lines.writelines(
                    # Nine digits tell any two float32 numbers apart.
                    f"{query} Q0 {names[item]} {rank} {score:.9g} {tag}\n"
                    for rank, (item, score) in enumerate(scored, start=1)
                )
                judged.writelines(
                    f"{query} 0 {names[item]} 1\n" for item in fold.report.positives[direction].of(row).tolist()
                )
    return [run, judgements]


COLUMNS = (*(f"r{k}" for k in RECALLS), "average_recall", "map5", "map_cut5")
BACKWARD = COLUMNS[:-2]  # one positive per query: mAP@5 says nothing new
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
    """Return one row of a tabular, after comments that name its columns and define those that need it."""
    metrics = columns(report)
    cells = [number(metric, report.metrics[metric]) for metric in metrics]
    if intervals is not None:
        cells = [rf"${cell} {{\pm}} {_width(metric, intervals)}$" for cell, metric in zip(cells, metrics, strict=True)]
    shown = "".join(LATEX.get(sign, sign) for sign in re.sub(r"\s+", " ", name))
    heading = " & ".join(["model", *map(label, metrics)])
    note = f" ({WHAT})" if intervals is not None else ""
    comments = "".join(f"% {line}\n" for line in [f"{heading}{note}", *notes(metrics)])
    return f"{comments}{' & '.join([shown, *cells])} \\\\\n"


def write_rows(
    folder: Path,
    name: str,
    report: Report,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    note: str | None = None,
) -> list[Path]:
    """Write ``rows.md`` and ``rows.tex`` and return them; nothing for recalls other than those at 1, 5 and 10."""
    if not set(RECALLS) <= set(report.ks):
        return []
    said = [note] if note is not None else []
    below = [*([WHAT] if intervals is not None else []), *said, *notes(columns(report))]
    contents = {
        "rows.md": markdown(name, report, intervals) + "".join(f"\n{line}.\n" for line in below),
        "rows.tex": latex(name, report, intervals) + "".join(f"% {line}\n" for line in said),
    }
    for file, content in contents.items():
        write_text(folder / file, content)
    return [folder / file for file in contents]


def _width(metric: str, intervals: Mapping[str, tuple[float, float]]) -> str:
    return number(metric, half_width(intervals[metric]))
