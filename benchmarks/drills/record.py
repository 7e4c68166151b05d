"""Rows of drills as they come, so that an interrupted table goes on, and the table of them all."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.drills.drill import Verdict
from retrieval_eval.run_files import read_rows


class Record:
    """The rows in `file`, JSON lines."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows so far."""
        return read_rows(self._file)

    def has(self, kind: str, seed: int) -> bool:
        """Whether this drill was done before."""
        return any((row["kind"], row["seed"]) == (kind, seed) for row in self.rows())

    def add(self, verdict: Verdict) -> None:
        """Add one row."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(verdict)) + "\n")

    def table(self) -> Table:
        """Return the table: a line per kind. Seconds and steps are of single faults."""
        table = Table(
            "kind", "runs", "passed", "faults", "seconds to recover: median", "max", "steps lost: median", "max"
        )
        for kind in dict.fromkeys(row["kind"] for row in self.rows()):
            rows = [row for row in self.rows() if row["kind"] == kind]
            fired = [fault for row in rows for fault in row["fired"]]
            passed = sum(not row["failure"] for row in rows)
            figures = []
            for key, form in (("seconds", ".1f"), ("lost", "g")):
                values = [fault[key] for fault in fired]
                figures += [format(statistics.median(values), form), format(max(values), form)] if values else ["", ""]
            table.add_row(kind, str(len(rows)), str(passed), str(len(fired)), *figures)
        return table
