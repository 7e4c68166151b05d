"""What the evaluate command does with a measurement: intervals, checks, files, and one table at the end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allpairs.errors import UserError
from retrieval_eval.embeddings import EmbeddingSet
from retrieval_eval.evaluation import Report
from retrieval_eval.exports import write_exports
from retrieval_eval.manifest import facts_of
from retrieval_eval.page import write_report
from retrieval_eval.parts import Part
from retrieval_eval.summary import table
from retrieval_eval.uncertainty import LEVEL, RESAMPLES, SEED, Intervals, intervals
from retrieval_eval.verify import verify


@dataclass(frozen=True, eq=False)
class Outcome:
    """A measurement and where its record goes."""

    name: str
    """The model's, in tables and runs."""
    title: str
    report: Report
    parts: Sequence[Part]
    manifest: Mapping[str, Any]
    folder: Path | None
    """For report.html and metrics.json; None writes neither."""
    embeddings: EmbeddingSet | None = None
    """The embeddings behind a report on one part, for its examples."""
    history: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] | None = None

    def finish(self, *, with_intervals: bool, export: Path | None, approximate: str | None) -> None:
        """Write the files and print the table, then what was written where."""
        checked = verify(self.parts)
        lines = [str(checked)]
        found = None
        if with_intervals:
            try:
                found = intervals([part.report for part in self.parts], [part.clusters for part in self.parts])
            except UserError as error:  # one image alone still has metrics
                lines.append(str(error))
        if approximate is not None:
            from retrieval_eval.approximate import measure_gap

            lines += [str(measure_gap(*search, approximate)) for search in self._searches()]
        if self.folder is not None:
            page = write_report(
                self.folder / "report.html",
                self.embeddings,
                self.report,
                history=self.history,
                title=self.title,
                config=self.config,
                facts=facts_of(self.manifest),
                cross_check=checked,
                intervals=found,
                rows=self.parts[0].rows,
            )
            metrics = self.folder / "metrics.json"
            metrics.write_text(json.dumps(self._record(found), indent=2) + "\n", encoding="utf-8")
            lines += [f"report: {page}", f"metrics: {metrics}"]
        else:
            lines.append("no report: give --out FOLDER for report.html and metrics.json")
        if export is not None:
            files = write_exports(export, self.name, self.report, self.parts, found)
            lines.append(f"export: {export} ({', '.join(file.name for file in files)})")
        self._print(found, lines)

    def _searches(self) -> list[tuple[Any, Any, Report]]:
        return [(queries, gallery, report) for part in self.parts for report, queries, gallery in part.searches()]

    def _record(self, found: Intervals | None) -> dict[str, Any]:
        manifest = dict(self.manifest)
        if found is not None:
            manifest["intervals"] = {
                "level": LEVEL,
                "method": "percentile bootstrap over images",
                "resamples": RESAMPLES,
                "seed": SEED,
                "clusters": sum(1 + max(int(own.max()) for own in part.clusters.values()) for part in self.parts),
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

        Console().print(table(self.report, self.title, found))
        if found is not None:
            print("± half of the 95 % interval over test images")
        for line in lines:
            print(line)
