"""The tables of COCOS: C's Tables 2 to 4 on a terminal, and all families in one table of Markdown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from allpairs.analysis.cocos import DIRECTIONS, Cocos, MeanStd
from allpairs.analysis.contributing import KEYS, RELATIVE
from allpairs.engine.contract import Family

if TYPE_CHECKING:
    from rich.table import Table

SYMBOLS = {"c_q": "C^q", "c_b": "C^B", "c_0": "C^0", "c": "C", "w_minus": "W⁻", "w_plus": "W⁺", RELATIVE: "C rel"}
TITLES: dict[Family, str] = {
    "triplet": "Triplets",
    "softmax": "Softmax over the negatives",
    "ranking": "SmoothAP",
    "sets": "Sets of positives (a negative contributes relative to its anchor's largest weight)",
}
_MARKDOWN_KEYS = ("c_q", "c_b", "c_0", "c", "w_minus", "w_plus", RELATIVE)


def show(value: MeanStd) -> str:
    """Return ``6.79 ± 0.83``."""
    return f"{value.mean:.2f} ± {value.std:.2f}"


def terminal_tables(rows: Sequence[Cocos]) -> "list[Table]":
    """Return a table per family and run, with the columns of the paper's tables and the comparable one."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    tables = []
    for run in dict.fromkeys(row.run for row in rows):
        for family, name in TITLES.items():
            members = [row for row in rows if (row.run, row.family) == (run, family)]
            if not members:
                continue
            table = Table(title=f"{run} · {name}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("objective", no_wrap=True)
            table.add_column("")
            for key in KEYS[family]:
                table.add_column(SYMBOLS[key], justify="right", no_wrap=True)
            for row in members:
                for direction in DIRECTIONS:
                    counts = (show(row.counts[direction][key]).replace(" ", "") for key in KEYS[family])
                    table.add_row(row.objective if direction == DIRECTIONS[0] else "", direction, *counts)
            tables.append(table)
    return tables


def markdown(rows: Sequence[Cocos]) -> str:
    """Return all rows in one table, a line per objective and direction, and below it how they were counted."""
    heads = ("run", "split", "objective", "direction", *(SYMBOLS[key] for key in _MARKDOWN_KEYS))
    lines = [_line(heads), _line(["---"] * 4 + ["---:"] * len(_MARKDOWN_KEYS))]
    for row in rows:
        for direction in DIRECTIONS:
            counts = row.counts[direction]
            cells = [show(counts[key]) if key in counts else "" for key in _MARKDOWN_KEYS]
            lines.append(_line([row.run, row.split, row.objective, direction, *cells]))
    setups = dict.fromkeys(row.setup for row in rows)
    notes = [
        f"Mean ± standard deviation over batches of {setup.batch_size}, ε = {setup.epsilon:g}, seed {setup.seed}; "
        f"SmoothAP with at most {setup.captions} captions per image"
        f"{'' if setup.with_tau else ', and without its 1/τ'}."
        for setup in setups
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def _line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
