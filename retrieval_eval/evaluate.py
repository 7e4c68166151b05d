"""``python -m retrieval_eval.evaluate``: measure the embeddings of a run, or two galleries of your own, and report.

    python -m retrieval_eval.evaluate --run runs/emoji --split test
    python -m retrieval_eval.evaluate --queries images.npy --gallery captions.npy --positives positives.json --out here

``positives.json`` is a list with one list of gallery indices per query.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from cyclopts import App, Parameter

from allpairs.errors import UserError
from retrieval_eval.command import run
from retrieval_eval.cross_check import cross_check
from retrieval_eval.embeddings import EmbeddingSet, existing, read_json, read_matrix
from retrieval_eval.evaluation import Report
from retrieval_eval.evaluation import evaluate as measure
from retrieval_eval.page import write_report
from retrieval_eval.protocols import check_protocol
from retrieval_eval.summary import table

app = App(name="retrieval_eval.evaluate", help="Exact retrieval metrics and a report in one HTML file.")


@app.default
def evaluate(
    *,
    run: Annotated[Path | None, Parameter(help="Folder of a training run with embeddings/SPLIT.")] = None,
    split: Annotated[str, Parameter(help="Split to read from the run.")] = "test",
    protocol: Annotated[str | None, Parameter(help="Evaluation protocol; default: the embeddings' own.")] = None,
    queries: Annotated[Path | None, Parameter(help="Matrix [N, D] of query embeddings, .npy.")] = None,
    gallery: Annotated[Path | None, Parameter(help="Matrix [M, D] of gallery embeddings, .npy.")] = None,
    positives: Annotated[Path | None, Parameter(help="JSON: per query the list of its gallery indices.")] = None,
    one_way: Annotated[
        bool, Parameter(help="Queries to gallery only; then gallery items may belong to no query.")
    ] = False,
    out: Annotated[
        Path | None, Parameter(help="Folder for report.html and metrics.json (a run's report goes to the run).")
    ] = None,
) -> None:
    """Evaluate a run (--run), or two galleries (--queries, --gallery, --positives)."""
    arrays = {"--queries": queries, "--gallery": gallery, "--positives": positives}
    missing = [flag for flag, value in arrays.items() if value is None]
    if run is not None and len(missing) < len(arrays):
        raise UserError("--run and --queries/--gallery/--positives exclude each other: a run brings its own embeddings")
    if run is not None and one_way:
        raise UserError("--one-way is for --queries/--gallery: the protocols of a run measure both directions")
    if protocol is not None:
        check_protocol(protocol)
    if run is not None:
        _evaluate_run(run, split, protocol, out)
    elif queries is not None and gallery is not None and positives is not None:
        _evaluate_arrays(queries, gallery, positives, one_way, out)
    else:
        raise UserError(
            f"nothing to evaluate: {', '.join(missing)} missing; accepted: --run, or all three of {', '.join(arrays)}"
        )


def _evaluate_run(folder: Path, split: str, protocol: str | None, out: Path | None) -> None:
    embeddings = EmbeddingSet.read(existing(folder / "embeddings" / split))
    embeddings.protocol = check_protocol(protocol or embeddings.protocol)
    report = measure(
        embeddings.images, embeddings.captions, embeddings.image_ids, embeddings.caption_ids, device=_device()
    )
    checked = cross_check(report, embeddings.images, embeddings.captions)
    page = write_report(
        (out or folder) / "report.html",
        embeddings,
        report,
        history=read_history(folder / "metrics.jsonl"),
        title=f"{folder.resolve().name} · {split}",
        config=read_config(folder / "config.yaml"),
        cross_check=checked,
    )
    _show(report, f"{folder} · {split}")
    print(f"{checked}\nreport: {page}")


def _evaluate_arrays(queries: Path, gallery: Path, positives: Path, one_way: bool, out: Path | None) -> None:
    lists = read_json(positives)
    if not isinstance(lists, list) or not all(isinstance(row, list) for row in lists):
        raise UserError(f"{positives} must be a list with one list of gallery indices per query, as [[0, 1], [2]]")
    Q, G = read_matrix(queries), read_matrix(gallery)
    report = measure(Q, G, positives=lists, both_directions=not one_way, device=_device())
    checked = cross_check(report, Q, G)
    _show(report, f"{queries.name} · {gallery.name}")
    print(str(checked))
    if out is not None:
        page = write_report(
            out / "report.html", None, report, title=f"{queries.name} · {gallery.name}", cross_check=checked
        )
        (out / "metrics.json").write_text(json.dumps(report.metrics, indent=2) + "\n")
        print(f"report: {page}")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a ``metrics.jsonl``, none if there is no file; UserError names a line that is not JSON."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError:
            if number == len(lines):
                break  # a run that was killed while it wrote its last line
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        rows.append(row)
    return rows


def read_config(path: Path) -> dict[str, Any] | None:
    """Read the resolved configuration of a run, None if there is no file; UserError if it is not a YAML mapping."""
    if not path.exists():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a YAML mapping")
    return config


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _show(report: Report, title: str) -> None:
    from rich.console import Console

    Console().print(table(report, title))


if __name__ == "__main__":
    run(app)
