"""What a setting of the searched keys came to over its seeds: mean and standard deviation, as table, CSV and LaTeX."""

import csv
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allpairs.files import replacing, write_text
from retrieval_eval.exports import LATEX
from retrieval_eval.metrics import RECALLS, label, metric_of
from tune.config import SEED, Search
from tune.results import Trial, cells, ranked, reference_name
from tune.space import describe, short_key, short_value

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = (*(f"{way}/r{k}" for way in ("i2t", "t2i") for k in RECALLS), "rsum")
"""What a paper's table shows of a setting, without the split."""
MOST_COLUMNS = 4
"""Searched keys with a column each in a terminal's table; of more, most of which a trial may not have, one says all."""


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and the standard deviation of one seed (n - 1 in the denominator; None of a single one)."""

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Return the spread of `values`, None where there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def text(self, decimals: int, between: str = " ± ") -> str:
        """Write it: ``411.4 ± 2.1``."""
        deviation = "" if self.deviation is None else f"{between}{self.deviation:.{decimals}f}"
        return f"{self.mean:.{decimals}f}{deviation}"


@dataclass(frozen=True)
class Setting:
    """Values of the searched keys and the trials that had them, one per seed."""

    values: Mapping[str, Any]
    trials: Sequence[Trial]

    @property
    def reference(self) -> bool:
        """Whether it is one of the search's references."""
        return self.trials[0].reference

    @property
    def name(self) -> str:
        """Its values, briefly."""
        return reference_name(self.values) if self.reference else describe(self.values)

    def spread(self, metric: str, mode: str) -> Spread | None:
        """Return how the seeds' best values of `metric` spread, over the seeds that were measured."""
        return Spread.of([best[0] for trial in self.trials if (best := trial.best(metric, mode)) is not None])

    def best(self, metric: str, mode: str) -> tuple[float, float] | None:
        """Return the mean over seeds of the best value of `metric` and of its epoch."""
        found = [best for trial in self.trials if (best := trial.best(metric, mode)) is not None]
        if not found:
            return None
        return statistics.fmean(value for value, _ in found), statistics.fmean(epoch for _, epoch in found)

    @property
    def history(self) -> list[dict[str, float]]:
        """The mean over seeds of each evaluation that all measured seeds have."""
        histories = [trial.history for trial in self.trials if trial.history]
        return [
            {key: statistics.fmean(row[key] for row in rows) for key in rows[0] if all(key in row for row in rows)}
            for rows in zip(*histories, strict=False)
        ]

    def figures(self, split: str, search: Search) -> dict[str, Spread]:
        """Return the spread of each of `FIGURES` on `split`: test once at the end, val at the best epoch of a seed."""
        measured = [row for trial in self.trials if (row := _final(trial, split, search)) is not None]
        keys = [name for name in FIGURES if measured and all(f"{split}/{name}" in row for row in measured)]
        found = {name: Spread.of([row[f"{split}/{name}"] for row in measured]) for name in keys}
        return {name: spread for name, spread in found.items() if spread is not None}

    @property
    def status(self) -> str:
        """How its trials ended: the one word, or how many of each, with the first reason."""
        counts = dict.fromkeys(("finished", "stopped early", "failed", "unfinished"), 0)
        for trial in self.trials:
            counts[trial.status] += 1
        kinds = [(status, count) for status, count in counts.items() if count]
        text = kinds[0][0] if len(kinds) == 1 else ", ".join(f"{count} {status}" for status, count in kinds)
        reason = next((trial.reason for trial in self.trials if trial.reason), "")
        return f"{text}: {reason}" if reason else text


def settings_of(trials: Sequence[Trial], search: Search) -> list[Setting]:
    """Group `trials` by the values of the searched keys, in the order they came.

    Values that were drawn twice are two settings: a seed counts once.
    """
    groups: dict[tuple[str, int], list[Trial]] = {}
    seen: Counter[tuple[str, Any]] = Counter()
    for trial in trials:
        values = f"{trial.reference} {_without_seed(trial, search)}"
        seed = trial.values.get(SEED) if search.seeds > 1 else None
        groups.setdefault((values, seen[values, seed]), []).append(trial)
        seen[values, seed] += 1
    return [
        Setting(_without_seed(group[0], search), sorted(group, key=lambda trial: trial.values.get(SEED, 0)))
        for group in groups.values()
    ]


def _without_seed(trial: Trial, search: Search) -> dict[str, Any]:
    keys = [key for key in search.space if key in trial.values] if not trial.reference else list(trial.values)
    return {key: trial.values[key] for key in keys if search.seeds == 1 or key != SEED}


def split_of(settings: Sequence[Setting], search: Search) -> str:
    """Return the split on which settings compare: test where every measured seed has it, else val."""
    measured = [trial for setting in settings for trial in setting.trials if trial.history]
    return "test" if measured and all(_final(trial, "test", search) for trial in measured) else "val"


def table(settings: Sequence[Setting], search: Search) -> "Table":
    """Return a rich table of `settings`, best first: a column for each searched key, or one for all of many."""
    from rich.markup import escape
    from rich.table import Table

    several = search.seeds > 1
    test = split_of(settings, search) == "test"
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("seeds" if several else "trial", no_wrap=True)
    many = len(search.space) > MOST_COLUMNS
    if many:
        result.add_column("setting", overflow="fold")
    else:
        for key in [*search.space, *(["reference"] if search.references else [])]:
            result.add_column(short_key(key), justify="right")
    result.add_column(search.metric, justify="right", no_wrap=True)
    if test:
        result.add_column("test/rsum", justify="right", no_wrap=True)
    result.add_column("epoch", justify="right")
    result.add_column("")
    for rank, setting in enumerate(ranked(settings, search)):
        best, spread = setting.best(search.metric, search.mode), setting.spread(search.metric, search.mode)
        measured = spread.seeds if spread else 0
        row = _cells(setting, search)
        result.add_row(
            f"{measured} of {search.seeds}" if several else setting.trials[0].id,
            *([escape(setting.name)] if many else ["–" if cell is None else escape(short_value(cell)) for cell in row]),
            "–" if spread is None else spread.text(3 if abs(spread.mean) < 10 else 1),
            *([setting.figures("test", search)["rsum"].text(1) if measured else "–"] if test else []),
            "–" if best is None else f"{best[1]:.3g}",
            escape(setting.status),
            style="bold green" if rank == 0 and best is not None else None,
        )
    return result


def write_settings(folder: Path, settings: Sequence[Setting], search: Search) -> list[Path]:
    """Write ``settings.csv`` and ``settings.tex``, one row a setting, best first; return them."""
    split = split_of(settings, search)
    order = ranked(settings, search)
    with replacing(folder / "settings.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [f"best {search.metric}", *(f"{split}/{name}" for name in FIGURES)]
        keys = [*search.space, *(["reference"] if search.references else [])]
        writer.writerow([*keys, "seeds", *(f"{name} {what}" for name in names for what in ("mean", "std"))])
        for setting in order:
            figures = setting.figures(split, search)
            spreads = [setting.spread(search.metric, search.mode), *(figures.get(name) for name in FIGURES)]
            measured = [_pair(spread) for spread in spreads]
            seeds = spreads[0].seeds if spreads[0] else 0
            writer.writerow([*_cells(setting, search), seeds, *(cell for pair in measured for cell in pair)])
    write_text(folder / "settings.tex", _latex(order, search, split))
    return [folder / "settings.csv", folder / "settings.tex"]


def _latex(settings: Sequence[Setting], search: Search, split: str) -> str:
    """Return a whole tabular (booktabs) of `FIGURES`."""
    keys = [_escape(short_key(key)) for key in search.space]
    lines = [
        f"% {search.name}: mean ± standard deviation over {search.seeds} seed(s) on {split}; needs booktabs",
        rf"\begin{{tabular}}{{{'l' * len(keys)}{'c' * len(FIGURES)}}}",
        r"\toprule",
        " & ".join([*keys, *map(label, FIGURES)]) + r" \\",
        r"\midrule",
    ]
    for setting in settings:
        figures = setting.figures(split, search)
        measured = [_math(figures[name], metric_of(name).decimals) if name in figures else "--" for name in FIGURES]
        lines.append(" & ".join([*_latex_cells(setting, search), *measured]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _math(spread: Spread, decimals: int) -> str:
    return "$" + spread.text(decimals, r" {\pm} ") + "$"


def _final(trial: Trial, split: str, search: Search) -> Mapping[str, float] | None:
    if split == "test":
        return trial.summary if "test/rsum" in trial.summary else None
    measured = [row for row in trial.history if search.metric in row]
    if not measured:
        return None
    return (max if search.mode == "max" else min)(measured, key=lambda row: row[search.metric])


def _cells(setting: Setting, search: Search) -> list[Any]:
    return cells(setting.values, list(search.space), search, reference=setting.reference)


def _latex_cells(setting: Setting, search: Search) -> list[str]:
    """Return one cell per key; a reference's name over all of them."""
    if setting.reference:
        return [rf"\multicolumn{{{len(search.space)}}}{{l}}{{{_escape(setting.name)}}}"]
    return ["--" if cell is None else _escape(str(cell)) for cell in _cells(setting, search)[: len(search.space)]]


def _pair(spread: Spread | None) -> tuple[Any, Any]:
    if spread is None:
        return "", ""
    return spread.mean, "" if spread.deviation is None else spread.deviation


def _escape(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
