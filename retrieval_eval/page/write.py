"""`write_report`: everything about one evaluation in one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from allpairs.embeddings import EmbeddingSet
from allpairs.files import write_text
from retrieval_eval.cross_check import CrossCheck
from retrieval_eval.metrics import RECALLS, Metric, metric_of, notes, of_direction, with_rsum
from retrieval_eval.page.assets import render
from retrieval_eval.page.figures import rank_figures, similarity_figures, training_figures
from retrieval_eval.page.payload import Items, embedded, items_payload, pictures_payload, queries_payload
from retrieval_eval.page.query_results import (
    REACH,
    QueryResults,
    best_first,
    hubs,
    never_found,
    of_different_images,
    query_results,
    worst_first,
)
from retrieval_eval.page.suspects import GENERAL, RULES, Suspect, Suspects, suspects
from retrieval_eval.page.times import time_figure
from retrieval_eval.report import Report
from retrieval_eval.searched.agreement import agreement
from retrieval_eval.ties import TREATMENTS, Ranks

SIDES = {"i": "image", "t": "text", "v": "video", "q": "query", "g": "gallery"}
SCRIPTS = ("dom.js", "search.js", "explorer.js", "report.js")
ORDERS = (("worst", "worst first"), ("best", "best first"), ("data", "as in the data"))
SUSPECTS = 240  # suspected pairs a page lists, of each kind


def write_report(
    path: str | Path,
    embeddings: EmbeddingSet | None,
    report: Report,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    title: str = "Retrieval report",
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    cross_check: CrossCheck | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    rows: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the report to `path` and return it.

    `embeddings` are the ones that `report` measured, images asking first; without them no queries are shown. `rows`
    gives, per direction, the rows of the embeddings that asked, where only some did. `history` holds the rows of
    ``metrics.jsonl``, for the curves; `intervals` the 95 % interval (low, high) of metrics by name; `config` the
    resolved configuration, secrets redacted; `facts` anything else worth a line (versions, commit, duration). All text
    is escaped; the page forbids itself the network and any script but its own. UserError if the embeddings do not fit
    the report.
    """
    import yaml

    directions = query_results(embeddings, report, rows) if embeddings is not None else {}
    found = suspects(embeddings, directions) if embeddings is not None else Suspects([], [], 0)
    data, pictures = _data(embeddings, directions, found) if embeddings is not None else ("", "")
    page = render(
        "report.html",
        SCRIPTS,
        title=title,
        report=report,
        rows=[_row(report, direction) for direction in report.directions],
        columns=columns(report),
        ks=report.ks,
        chance_rsum=_chance_rsum(report),
        intervals={name: interval(name, *bounds) for name, bounds in (intervals or {}).items()},
        treatments=TREATMENTS,
        tied=sum(report.tied_queries.values()),
        training=[*training_figures(history, report.directions), *filter(None, [time_figure(history)])],
        figures=rank_figures(report) + similarity_figures(directions),
        directions=[_direction(one) for one in directions.values()],
        orders=ORDERS,
        reach=REACH,
        notes=notes(report.metrics),
        suspected=_suspected(found),
        general=f"Left out: {found.general:,} texts of more than {GENERAL} images." if found.general else "",
        facts=_facts(embeddings, report, cross_check) | {str(key): str(value) for key, value in (facts or {}).items()},
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True) if config else "",
        data=data,
        pictures=pictures,
    )
    return write_text(Path(path), page)


def columns(report: Report) -> list[Metric]:
    """Return the headline's columns."""
    return [metric for metric in of_direction(report.ks) if f"{report.directions[0]}/{metric.name}" in report.metrics]


def interval(name: str, low: float, high: float) -> str:
    """Return an interval as text, with the decimals of its metric and, to be short, no zero ahead of the point."""
    decimals = metric_of(name).decimals
    ends = [f"{value:.{decimals}f}" for value in (low, high)]
    return "–".join(end.removeprefix("0") if decimals == 3 else end for end in ends)


def title_of(direction: str) -> str:
    """Return a direction's name in words: ``Image → text``."""
    asking, answering = direction.split("2", 1)
    return f"{SIDES.get(asking, asking).capitalize()} → {SIDES.get(answering, answering)}"


def script_directions(directions: Mapping[str, QueryResults]) -> list[dict[str, Any]]:
    """Return what the script must know of each direction."""
    return [
        {"name": name, "title": title_of(name), "fromImages": one.from_images, "total": one.total}
        for name, one in directions.items()
    ]


def _direction(one: QueryResults) -> dict[str, Any]:
    gallery = one.positives.gallery
    return {
        "name": one.direction,
        "title": title_of(one.direction),
        "fromImages": one.from_images,
        "gallery": gallery,
        "never": never_found(one),
        "fair": min(REACH, gallery) * len(one.rows_Q) / gallery,
    }


def _data(embeddings: EmbeddingSet, directions: Mapping[str, QueryResults], found: Suspects) -> tuple[str, str]:
    """Return the two blocks of JSON: queries and texts, and pictures (parsed only when the first one is shown)."""
    kinds = {"text": found.text[:SUSPECTS], "score": found.score[:SUSPECTS]}
    listed = [*kinds["text"], *kinds["score"]]
    popular = {name: hubs(one) for name, one in directions.items()}
    images = {suspect.image for suspect in listed}
    captions = {suspect.caption for suspect in listed} | {one.alike for one in listed if one.alike is not None}
    for name, one in directions.items():
        (captions if one.from_images else images).update(hub.item for hub in popular[name])
    items = Items.of([directions], images, captions)
    chosen = {}
    for name, one in directions.items():
        image_of = embeddings.image_ids[one.rows_Q] if one.from_images else embeddings.caption_ids[one.rows_Q]
        orders = {"worst": worst_first(one), "best": best_first(one)}
        chosen[name] = orders, {kind: of_different_images(order, image_of) for kind, order in orders.items()}
    data = items_payload(embeddings, items) | {
        "directions": script_directions(directions),
        "runs": [{"name": "", "queries": {name: queries_payload(one, items) for name, one in directions.items()}}],
        "orders": {
            kind: {name: orders[kind].tolist() for name, (orders, _) in chosen.items()} for kind in ("worst", "best")
        },
        "examples": {name: shown for name, (_, shown) in chosen.items()},
        "hubs": {
            name: [
                asdict(hub) | {"item": items.place(hub.item, not directions[name].from_images)} for hub in popular[name]
            ]
            for name in directions
        },
        "suspects": {kind: [_suspect(one, items) for one in some] for kind, some in kinds.items()},
    }
    first = images | {
        int(row)
        for name, one in directions.items()
        for queries in chosen[name][1].values()
        for row in (one.rows_Q[queries] if one.from_images else one.answers_QK[queries].ravel())
    }
    return embedded(data), embedded(pictures_payload(embeddings, items, first))


def _suspect(one: Suspect, items: Items) -> dict[str, Any]:
    return asdict(one) | {
        "image": items.place(one.image, True),
        "caption": items.place(one.caption, False),
        "alike": None if one.alike is None else items.place(one.alike, False),
        "score": round(one.score, 3),
        "ahead": round(one.ahead, 3),
    }


def _suspected(found: Suspects) -> list[dict[str, str]]:
    """Return per kind of evidence its name, title, rule, how many pairs it speaks for, and which of them are listed."""
    same = sum(one.reason == "same text" for one in found.text)
    parts = {"text": f": the same {same:,}, similar {len(found.text) - same:,}" if found.text else "", "score": ""}
    return [
        {
            "kind": kind,
            "title": title,
            "rule": RULES[kind],
            "count": f"{len(some):,}",
            "detail": parts[kind] + (f"; the first {SUSPECTS} are listed" if len(some) > SUSPECTS else ""),
        }
        for kind, title, some in (("text", "By text", found.text), ("score", "By score alone", found.score))
    ]


def _row(report: Report, direction: str) -> dict[str, Any]:
    """One direction's line of the table, with what chance would reach."""
    start = f"{direction}/"
    metrics = {name.removeprefix(start): value for name, value in report.metrics.items() if name.startswith(start)}
    chance = _chance(report, direction)
    return {
        "direction": direction,
        "title": title_of(direction),
        "metrics": metrics,
        "chance": {k: 100.0 * float(chance.hits(k)["expected"].mean()) for k in report.ks},
        "queries": report.queries(direction),
        "gallery": report.gallery(direction),
        "tied": report.tied_queries[direction],
    }


def _chance(report: Report, direction: str) -> Ranks:
    """Ranks of a model that scores everything alike."""
    counts = report.positives[direction].counts
    zeros = np.zeros_like(counts)
    return Ranks(zeros.astype(np.float32), zeros, counts, report.gallery(direction) - counts)


def _chance_rsum(report: Report) -> float:
    hits = {direction: _chance(report, direction).hits for direction in report.directions}
    recalls = {f"{name}/r{k}": 100.0 * float(of(k)["expected"].mean()) for name, of in hits.items() for k in RECALLS}
    return with_rsum(recalls, report.directions, RECALLS).get("rsum", 0.0)


def _facts(embeddings: EmbeddingSet | None, report: Report, cross_check: CrossCheck | None) -> dict[str, str]:
    facts = {}
    if embeddings is not None:
        facts = {
            "Protocol": embeddings.protocol,
            "Split": embeddings.split,
            "Data hash": embeddings.data_hash or "not recorded",
            "Images": f"{len(embeddings.images):,}",
            "Captions": f"{len(embeddings.captions):,}",
            "Dimensions": f"{embeddings.images.shape[1]:,}",
        }
    facts["Scores"] = "float32 dot products, no TF32"
    found = agreement(report)
    if found is None:
        facts["Ranks"] = "exact, counted over the whole gallery; ties by their expected value"
    else:
        facts["Ranks"], facts["Agreement"], facts["Left out"] = found.engine, found.compared, found.missing
    if cross_check is not None:
        facts["Cross-check"] = str(cross_check)
    return facts
