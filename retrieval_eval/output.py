"""What the evaluate command does with a measurement: intervals, checks, files, and one table at the end."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from allpairs.files import adding_to_folder, write_json
from allpairs.terminal import visible
from retrieval_eval.cross_check import verify
from retrieval_eval.exports import write_exports
from retrieval_eval.folds import MeasuredFold
from retrieval_eval.manifest import facts_of
from retrieval_eval.metrics import notes
from retrieval_eval.norms import similarity_note
from retrieval_eval.page import write_report
from retrieval_eval.report import Report
from retrieval_eval.searched.agreement import agreement
from retrieval_eval.summary import table
from retrieval_eval.uncertainty import LEVEL, RESAMPLES, SEED, Intervals, intervals

FILES = ("report.html", "metrics.json")
"""What goes into a folder given by --out."""


@dataclass(frozen=True, eq=False)
class EvaluationOutput:
    """A measurement and where its record goes."""

    name: str
    """The model's, in tables and runs."""
    title: str
    report: Report
    folds: Sequence[MeasuredFold]
    manifest: Mapping[str, Any]
    folder: Path | None
    """For report.html and metrics.json; None writes neither."""
    suffix: str = ""
    """Of both names, ahead of the point: a run's folder holds reports on several splits."""
    embeddings: EmbeddingSet | None = None
    """The embeddings behind a report on one fold, for its examples."""
    history: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] | None = None

    def finish(self, *, with_intervals: bool, export: Path | None, approximate: str | None) -> None:
        """Write the files, all of them or none, and print the table, then what was written where."""
        note = similarity_note(self.manifest)
        searched = agreement(self.report)
        # A search by FAISS is compared with the count; a count is checked by a search.
        checked = verify(self.folds) if searched is None else None
        lines = [note] if note is not None else []
        lines += searched.lines() if searched is not None else [str(checked)]
        found = None
        if with_intervals:
            try:
                found = intervals([fold.report for fold in self.folds], [fold.clusters for fold in self.folds])
            except UserError as error:  # one image alone still has metrics
                lines.append(str(error))
        if approximate is not None:
            from retrieval_eval.approximate import measure_gap

            lines += [str(measure_gap(*search, approximate)) for search in self._searches()]
        with ExitStack() as writing:
            if self.folder is not None:
                fresh = writing.enter_context(adding_to_folder(self.folder))
                page, metrics = (name.replace(".", f"{self.suffix}.") for name in FILES)
                write_report(
                    fresh / page,
                    self.embeddings,
                    self.report,
                    history=self.history,
                    title=self.title,
                    config=self.config,
                    facts=facts_of(self.manifest),
                    cross_check=checked,
                    intervals=found,
                    rows=self.folds[0].rows,
                )
                write_json(fresh / metrics, self._record(found))
                lines += [f"report: {self.folder / page}", f"metrics: {self.folder / metrics}"]
            else:
                lines.append("no report: give --out FOLDER for report.html and metrics.json")
            if export is not None:
                fresh = writing.enter_context(adding_to_folder(export))
                files = write_exports(fresh, self.name, self.report, self.folds, found, note=note)
                lines.append(f"export: {export} ({', '.join(file.name for file in files)})")
        self._print(found, lines)

    def _searches(self) -> list[tuple[Any, Any, Report]]:
        return [(queries, gallery, report) for fold in self.folds for report, queries, gallery in fold.searches()]

    def _record(self, found: Intervals | None) -> dict[str, Any]:
        manifest = dict(self.manifest)
        if found is not None:
            manifest["intervals"] = {
                "level": LEVEL,
                "method": "percentile bootstrap over images",
                "resamples": RESAMPLES,
                "seed": SEED,
                "clusters": sum(1 + max(int(own.max()) for own in fold.clusters.values()) for fold in self.folds),
            }
        record = {
            "manifest": manifest,
            "metrics": self.report.metrics,
            "ties": self.report.ties,
            "tied_queries": self.report.tied_queries,
        }
        return record | ({"intervals": {name: list(ends) for name, ends in found.items()}} if found else {})

    def _print(self, found: Intervals | None, lines: Sequence[str]) -> None:
        from rich.console import Console

        Console().print(table(self.report, visible(self.title), found))
        if found is not None:
            print("± half of the 95 % interval over test images")
        for note in notes(self.report.metrics):
            print(note)
        for line in lines:
            print(visible(line))
