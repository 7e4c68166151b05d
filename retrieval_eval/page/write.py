"""`write_report`: everything about one evaluation in one HTML file that needs no network and runs no script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_eval.cross_check import CrossCheck
from retrieval_eval.embeddings import EmbeddingSet
from retrieval_eval.evaluation import RSUM, Report
from retrieval_eval.page.examples import examples
from retrieval_eval.page.figures import rank_figures, training_figures
from retrieval_eval.ties import TREATMENTS, Ranks

HERE = Path(__file__).parent
SIDES = {"i": "image", "t": "text", "v": "video", "q": "query", "g": "gallery"}


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
) -> Path:
    """Write the report to `path` and return it.

    `embeddings` are the ones that `report` measured, images asking first; without them no queries are shown. `history`
    holds the rows of ``metrics.jsonl``, for the curves; `config` the resolved configuration, secrets redacted; `facts`
    anything else worth a line (versions, commit, duration). All text is escaped and the page forbids itself scripts
    and network.
    """
    import jinja2
    import yaml
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["svg"] = Markup
    page = environment.get_template("template.html").render(
        title=title,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        report=report,
        rows=[_row(report, direction) for direction in report.directions],
        ks=report.ks,
        averaged=set(RSUM) <= set(report.ks),
        chance_rsum=_chance_rsum(report),
        treatments=TREATMENTS,
        tied=sum(report.tied_queries.values()),
        training=training_figures(history, report.directions),
        ranks=rank_figures(report),
        examples=examples(embeddings, report) if embeddings is not None else {},
        names={direction: _name(direction) for direction in report.directions},
        facts=_facts(embeddings, cross_check) | {str(key): str(value) for key, value in (facts or {}).items()},
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True) if config else "",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _name(direction: str) -> str:
    asking, answering = direction.split("2", 1)
    return f"{SIDES.get(asking, asking).capitalize()} → {SIDES.get(answering, answering)}"


def _row(report: Report, direction: str) -> dict[str, Any]:
    """One direction's line of the table, with what chance would reach."""
    start = f"{direction}/"
    metrics = {name.removeprefix(start): value for name, value in report.metrics.items() if name.startswith(start)}
    chance = _chance(report, direction)
    return {
        "direction": direction,
        "name": _name(direction),
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
    return sum(
        100.0 * float(_chance(report, direction).hits(k)["expected"].mean())
        for direction in report.directions
        for k in RSUM
    )


def _facts(embeddings: EmbeddingSet | None, cross_check: CrossCheck | None) -> dict[str, str]:
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
    facts["Ranks"] = "exact, counted over the whole gallery; ties by their expected value"
    if cross_check is not None:
        facts["Cross-check"] = str(cross_check)
    return facts
