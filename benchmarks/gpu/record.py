"""Rows as they are measured: a line of JSON each, on disk before the next is begun."""

import json
import os
from pathlib import Path
from typing import Any

ROWS = "rows.jsonl"
TABLE = "table.md"


class Record:
    """The rows of one run, in the folder `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.rows: list[dict[str, Any]] = []
        (directory / ROWS).write_text("")

    def measured(self, section: str, name: str, **values: Any) -> None:
        """Keep what was measured."""
        self._keep({"section": section, "name": name, **values})

    def lost(self, section: str, name: str, error: BaseException | str) -> None:
        """Keep that a row failed, with its error in one line."""
        # What torch and a peer's process say is a RuntimeError, whose name adds nothing.
        text = str(error) if isinstance(error, str | RuntimeError) else f"{type(error).__name__}: {error}"
        line = " ".join(text.split())
        self._keep({"section": section, "name": name, "lost": line[:300]})

    def skipped(self, section: str, name: str, why: str) -> None:
        """Keep that a row was not begun."""
        self._keep({"section": section, "name": name, "skipped": why})

    def table(self) -> Path:
        """Write the Markdown table of all rows, one for each section, and return its file."""
        lines: list[str] = []
        for section in dict.fromkeys(row["section"] for row in self.rows):
            rows = [row for row in self.rows if row["section"] == section]
            columns = list(dict.fromkeys(key for row in rows for key in row if key not in _OUTSIDE))
            lines += [f"### {section}", "", _line(["name", *columns]), _line(["---"] * (len(columns) + 1))]
            for row in rows:
                cells = [_text(row[key]) if key in row else "" for key in columns]
                outside = [f"{kind}: {row[kind]}" for kind in ("lost", "skipped") if kind in row]
                if outside and columns:
                    cells = [*outside, *cells[1:]]
                lines.append(_line([row["name"], *(cells if columns else outside)]))
            lines.append("")
        path = self.directory / TABLE
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with (self.directory / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(_shown(row), flush=True)


_OUTSIDE = ("section", "name", "lost", "skipped")


def _shown(row: dict[str, Any]) -> str:
    values = (f"{key} {_text(value)}" for key, value in row.items() if key not in ("section", "name"))
    return f"{row['section']} · {row['name']}: " + ", ".join(values)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
