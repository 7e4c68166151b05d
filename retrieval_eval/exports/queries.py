"""A table of the queries of one direction, a row each."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrieval_eval.parts import Part, Side
from retrieval_eval.shortlist import Shortlist

if TYPE_CHECKING:
    import pyarrow as pa

TOP = 10  # answers listed per query


def write_queries(path: Path, direction: str, parts: Sequence[Part], answers: Sequence[Shortlist]) -> Path:
    """Write a Parquet file and return its path; the columns:

    - ``direction``, ``query`` (its name here and in the TREC files), ``image_id``, ``text`` (a caption, or an image's
      key), ``rank`` (expected, of the best positive), and every value of `Report.per_query`;
    - per positive, in one order: ``positives`` (names), ``positive_scores``, ``positive_ranks`` (expected over the
      orders of tied items: the mean place of the tie), and the integers they come from, ``positive_greater`` and
      ``positive_equal`` (gallery items above and level, itself included);
    - ``top`` and ``top_scores``: the ten best gallery items, best first.
    """
    import pyarrow.parquet as pq

    tables = [_table(direction, part, found) for part, found in zip(parts, answers, strict=True)]
    partial = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(partial, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    partial.replace(path)
    return path


def _table(direction: str, part: Part, found: Shortlist) -> "pa.Table":
    import pyarrow as pa

    asking, answering = part.asking[direction], part.answering[direction]
    positives, counts = part.report.positives[direction], part.report.counts[direction]
    names = _names(answering)

    def lists(offsets: np.ndarray, values: "pa.Array") -> "pa.Array":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)

    k = min(TOP, found.indices.shape[1])
    every_k = np.arange(len(asking) + 1) * k
    return pa.table(
        {
            "direction": pa.array([direction] * len(asking)),
            "query": _names(asking),
            "image_id": pa.array(asking.ids),
            "text": pa.array(list(asking.labels), pa.string()),
            **{name: pa.array(values) for name, values in part.report.per_query[direction].items()},
            "positives": lists(positives.offsets, names.take(pa.array(positives.indices))),
            "positive_scores": lists(positives.offsets, pa.array(counts.score)),
            "positive_ranks": lists(positives.offsets, pa.array(counts.greater + (counts.equal + 1) / 2)),
            "positive_greater": lists(positives.offsets, pa.array(counts.greater)),
            "positive_equal": lists(positives.offsets, pa.array(counts.equal)),
            "top": lists(every_k, names.take(pa.array(found.indices[:, :k].ravel()))),
            "top_scores": lists(every_k, pa.array(found.scores[:, :k].ravel())),
        }
    )


def _names(side: Side) -> "pa.Array":
    import pyarrow as pa

    return pa.array([side.name(row) for row in range(len(side))], pa.string())
