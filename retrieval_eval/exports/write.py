"""`write_exports`: every export of one measurement in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from retrieval_eval.evaluation import Report
from retrieval_eval.exports.queries import write_queries
from retrieval_eval.exports.rows import write_rows
from retrieval_eval.exports.trec import write_trec
from retrieval_eval.parts import Part
from retrieval_eval.shortlist import Shortlist, shortlist

DEPTH = 100  # answers per query in a TREC run


def write_exports(
    folder: Path,
    name: str,
    report: Report,
    parts: Sequence[Part],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> list[Path]:
    """Write into `folder`, which is made if need be, and return the files.

    ``queries_<direction>.parquet``, ``run_<direction>.trec``, ``qrels_<direction>.trec``; ``rows.md``, ``rows.tex``.
    `name` is the model's, for the rows and the runs. The queries are those of `parts`, one after the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for direction in report.directions:
        answers = [_answers(part, direction) for part in parts]
        files.append(write_queries(folder / f"queries_{direction}.parquet", direction, parts, answers))
        files += write_trec(folder, direction, name, parts, answers)
    return [*files, *write_rows(folder, name, report, intervals)]


def _answers(part: Part, direction: str) -> Shortlist:
    return shortlist(part.asking[direction].embeddings, part.answering[direction].embeddings, DEPTH)
