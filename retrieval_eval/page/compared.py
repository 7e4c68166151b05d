"""`write_comparison`: two runs on the same queries side by side, in one HTML file that needs no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allpairs.embeddings import EmbeddingSet
from allpairs.files import write_text
from retrieval_eval.metrics import is_better, metric_of, notes
from retrieval_eval.page.assets import render
from retrieval_eval.page.figures import CLASSES, compared_figures
from retrieval_eval.page.payload import Items, embedded, items_payload, pictures_payload, queries_payload
from retrieval_eval.page.query_results import QueryResults, query_results
from retrieval_eval.page.write import columns, script_directions, title_of
from retrieval_eval.report import Report

if TYPE_CHECKING:
    from retrieval_eval.comparison import Change, Comparison

SCRIPTS = ("dom.js", "search.js", "explorer.js", "comparison.js")
NAMES = ("1", "2–5", "6–10", "11–50", "51–100", "> 100")


def write_comparison(
    path: str | Path,
    comparison: "Comparison",
    embeddings: tuple[EmbeddingSet, EmbeddingSet] | None,
    reports: tuple[Report, Report],
    *,
    title: str | None = None,
    facts: Mapping[str, Any] | None = None,
    rows: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the comparison of two runs to `path` and return it.

    `embeddings` are those that `reports` measured, of the same images and captions in the same order, which the caller
    has checked; without them no queries are shown. `rows` gives, per direction, the rows that asked, where only some
    did.
    """
    runs = (
        [query_results(one, report, rows) for one, report in zip(embeddings, reports, strict=True)]
        if embeddings
        else []
    )
    data, pictures = _data(embeddings[0], runs, comparison.names) if embeddings else ("", "")
    page = render(
        "comparison.html",
        SCRIPTS,
        title=title or " against ".join(comparison.names),
        names=comparison.names,
        changes={name: _change(name, one) for name, one in comparison.changes.items()},
        rows=_rows(reports[0], comparison),
        notes=notes(comparison.changes),
        figures=compared_figures(*reports, comparison.names) if comparison.seeds == (1, 1) else [],
        seeds=comparison.seeds,
        moves=[_moves(name, *ranks) for name, ranks in comparison.ranks.items()],
        classes=NAMES,
        directions=[{"name": name, "title": title_of(name)} for name in (reports[0].directions if embeddings else ())],
        orders=(
            ("wins", f"{comparison.names[1]} wins"),
            ("losses", f"{comparison.names[1]} loses"),
            ("data", "all, as in the data"),
        ),
        facts={str(key): str(value) for key, value in (facts or {}).items()},
        clusters=comparison.clusters,
        data=data,
        pictures=pictures,
    )
    return write_text(Path(path), page)


def _rows(report: Report, comparison: "Comparison") -> list[dict[str, str]]:
    """Return the table's lines: RSUM, then every metric of each direction."""
    lines = [{"name": "rsum", "title": "RSUM", "heading": ""}] if "rsum" in comparison.changes else []
    for direction in report.directions:
        lines += [
            {"name": f"{direction}/{column.name}", "title": title_of(direction), "heading": column.heading}
            for column in columns(report)
        ]
    return lines


def _change(name: str, change: "Change") -> dict[str, str]:
    places = metric_of(name).decimals

    def signed(value: float) -> str:
        return f"{value:+.{places}f}".replace("-", "−")

    uncertain = change.p >= 0.05 or change.difference == 0
    return {
        "first": f"{change.first:.{places}f}",
        "second": f"{change.second:.{places}f}",
        "difference": signed(change.difference),
        "interval": f"{signed(change.low)} to {signed(change.high)}",
        "p": f"{change.p:.4f}" if change.p >= 0.0001 else "< 0.0001",
        "sign": "" if uncertain else "better" if is_better(name, change.difference) else "worse",
    }


def _moves(direction: str, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Return how many queries went from which class of ranks to which, and how many won, lost and stayed."""
    places = [np.searchsorted(CLASSES, ranks) for ranks in (first, second)]
    table = np.zeros((len(NAMES), len(NAMES)), np.int64)
    np.add.at(table, tuple(places), 1)
    wins, losses = int((second < first).sum()), int((second > first).sum())
    return {
        "direction": direction,
        "title": title_of(direction),
        "table": table.tolist(),
        "shares": (table / max(1, table.max())).tolist(),
        "wins": wins,
        "losses": losses,
        "same": len(first) - wins - losses,
        "queries": len(first),
    }


def _data(embeddings: EmbeddingSet, runs: list[dict[str, QueryResults]], names: tuple[str, str]) -> tuple[str, str]:
    items = Items.of(runs, (), ())
    first, second = runs
    change = {name: second[name].rank_Q - one.rank_Q for name, one in first.items()}
    data = items_payload(embeddings, items) | {
        "directions": script_directions(first),
        "runs": [
            {"name": name, "queries": {direction: queries_payload(one, items) for direction, one in run.items()}}
            for name, run in zip(names, runs, strict=True)
        ],
        "orders": {
            kind: {name: _changed(sign * moved) for name, moved in change.items()}
            for kind, sign in (("wins", 1), ("losses", -1))
        },
    }
    return embedded(data), embedded(pictures_payload(embeddings, items))


def _changed(moved: np.ndarray) -> list[int]:
    """Return the queries with a negative change, the largest first."""
    order = np.argsort(moved, kind="stable")
    return order[moved[order] < 0].tolist()
