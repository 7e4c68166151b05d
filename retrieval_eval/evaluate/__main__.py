"""``python -m retrieval_eval.evaluate``: measure the embeddings of a run, or two galleries of your own, and report.

    python -m retrieval_eval.evaluate --run runs/emoji --split test
    python -m retrieval_eval.evaluate --run runs/a runs/b --protocol coco-1k-5fold --out ensemble --export ensemble
    python -m retrieval_eval.evaluate --queries images.npy --gallery captions.npy --positives positives.json --out here

Several runs are measured as an ensemble: the mean of their score matrices. ``positives.json`` is a list with one list
of gallery indices per query.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import App, Parameter

from allpairs.command import run as run_command
from allpairs.embeddings import EmbeddingSet, read_matrix
from allpairs.errors import UserError
from allpairs.files import existing, read_json
from retrieval_eval.ensemble import ensemble
from retrieval_eval.evaluate import evaluate as evaluate_matrices
from retrieval_eval.folds import Gallery, MeasuredFold
from retrieval_eval.manifest import manifest_of
from retrieval_eval.measure import CountingOptions, default_device, measure
from retrieval_eval.output import EvaluationOutput
from retrieval_eval.protocols import find_protocol
from retrieval_eval.run_files import read_config, read_rows
from retrieval_eval.subset import read_subset
from retrieval_eval.uncertainty import clusters_of

app = App(name="retrieval_eval.evaluate", help="Exact retrieval metrics and a report in one HTML file.")


@app.default
def evaluate(
    *,
    run: Annotated[
        list[Path] | None,
        Parameter(
            help="Folder of a training run with embeddings/SPLIT; several: their ensemble.", consume_multiple=True
        ),
    ] = None,
    split: Annotated[str, Parameter(help="Split to read from the run.")] = "test",
    protocol: Annotated[str | None, Parameter(help="Evaluation protocol; default: the embeddings' own.")] = None,
    subset: Annotated[
        Path | None,
        Parameter(help="Ask only these queries, against the full gallery: ids.txt (image ids or keys) or a JSON file."),
    ] = None,
    queries: Annotated[Path | None, Parameter(help="Matrix [N, D] of query embeddings, .npy.")] = None,
    gallery: Annotated[Path | None, Parameter(help="Matrix [M, D] of gallery embeddings, .npy.")] = None,
    positives: Annotated[Path | None, Parameter(help="JSON: per query the list of its gallery indices.")] = None,
    one_way: Annotated[
        bool, Parameter(help="Queries to gallery only; then gallery items may belong to no query.")
    ] = False,
    intervals: Annotated[
        bool, Parameter(help="95 % bootstrap intervals over images, for every metric.", negative="--no-intervals")
    ] = True,
    out: Annotated[
        Path | None, Parameter(help="Folder for report.html and metrics.json (a run's report goes to the run).")
    ] = None,
    export: Annotated[
        Path | None, Parameter(help="Folder for Parquet tables per query, TREC runs and qrels, and rows for papers.")
    ] = None,
    approximate: Annotated[
        str | None, Parameter(help="Also measure an approximate index (ivf, hnsw, pq, ivfpq): its gap to exact.")
    ] = None,
    shards: Annotated[int | None, Parameter(help="Ray actors to split the gallery over.")] = None,
    state: Annotated[
        Path | None, Parameter(help="Folder for finished work: the same command goes on there after a kill.")
    ] = None,
) -> None:
    """Evaluate a run (--run), or two galleries (--queries, --gallery, --positives)."""
    arrays = {"--queries": queries, "--gallery": gallery, "--positives": positives}
    missing = [flag for flag, value in arrays.items() if value is None]
    if run and len(missing) < len(arrays):
        raise UserError("--run and --queries/--gallery/--positives exclude each other: a run brings its own embeddings")
    if run and one_way:
        raise UserError("--one-way is for --queries/--gallery: the protocols of a run measure both directions")
    if protocol is not None:
        find_protocol(protocol)
    if approximate is not None:
        from retrieval_eval.approximate.indexes import check_kind

        check_kind(approximate)
    with shown_progress("counting") as progress:
        options = CountingOptions(default_device(), shards, state, progress)
        if run:
            output = _of_runs(run, split=split, protocol=protocol, subset=subset, options=options, out=out)
        elif queries is not None and gallery is not None and positives is not None:
            for flag, given in (("--subset", subset), (f"--protocol {protocol}", protocol not in (None, "custom"))):
                if given:
                    raise UserError(f"{flag} is for --run: two .npy files are measured as custom, with all queries")
            output = _of_matrices(queries, gallery, positives, one_way=one_way, options=options, out=out)
        else:
            raise UserError(
                f"nothing to evaluate: {', '.join(missing)} missing; accepted: --run, or all three of"
                f" {', '.join(arrays)}"
            )
    output.finish(with_intervals=intervals, export=export, approximate=approximate)


def _of_runs(
    folders: list[Path],
    *,
    split: str,
    protocol: str | None,
    subset: Path | None,
    options: CountingOptions,
    out: Path | None,
) -> EvaluationOutput:
    names = [str(folder) for folder in folders]
    sets = [EmbeddingSet.read(existing(folder / "embeddings" / split)) for folder in folders]
    joined = ensemble(sets, names)
    if protocol is None and len({one.protocol for one in sets}) > 1:
        raise UserError(
            f"the runs were made for different protocols ({', '.join(one.protocol for one in sets)})"
            "; accepted: one --protocol for all"
        )
    chosen = find_protocol(protocol or joined.protocol)
    joined.protocol = chosen.name
    asked = read_subset(subset, joined) if subset is not None else None
    measured = measure(joined, chosen, asked, options, names)
    alone = len(folders) == 1
    name = " + ".join(folder.resolve().name for folder in folders)
    # A run's own folder holds the report on the whole run, nothing else.
    folder = out or (folders[0] if alone and asked is None else None)
    return EvaluationOutput(
        name,
        f"{name} · {split} · {chosen.name}" + (f" · {subset.name}" if subset is not None else ""),
        measured.report,
        measured.folds,
        measured.manifest,
        folder,
        embeddings=measured.embeddings if len(measured.folds) == 1 else None,
        history=read_rows(folders[0] / "metrics.jsonl") if alone else [],
        config=read_config(folders[0] / "config.yaml") if alone else None,
    )


def _of_matrices(
    queries: Path, gallery: Path, positives: Path, *, one_way: bool, options: CountingOptions, out: Path | None
) -> EvaluationOutput:
    lists = read_json(positives)
    if not isinstance(lists, list) or not all(isinstance(row, list) for row in lists):
        raise UserError(f"{positives} must be a list with one list of gallery indices per query, as [[0, 1], [2]]")
    Q, G = read_matrix(queries), read_matrix(gallery)
    report = evaluate_matrices(
        Q,
        G,
        positives=lists,
        both_directions=not one_way,
        device=options.device,
        shards=options.shards,
        state=options.state,
        progress=options.progress,
    )
    asking, answering = (
        Gallery(letter, matrix, np.arange(len(matrix)), np.arange(len(matrix)), [""] * len(matrix))
        for letter, matrix in (("i", Q), ("t", G))
    )
    forward, *backward = report.directions
    fold = MeasuredFold(
        report,
        {forward: asking} | dict.fromkeys(backward, answering),
        {forward: answering} | dict.fromkeys(backward, asking),
        clusters_of(report),
    )
    digest = f"sha256:{hashlib.sha256(positives.read_bytes()).hexdigest()}"
    manifest = manifest_of("custom", [report], split=positives.name, data_hash=digest)
    name = f"{queries.name} · {gallery.name}"
    return EvaluationOutput(name, name, report, (fold,), manifest, out)


EVERY = 10.0  # seconds between two lines of a log


@contextmanager
def shown_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (done, total); what is done in less than ten seconds leaves no trace in a log."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str) -> None:
        self.what = what
        self.started = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            share = f"{100 * done / max(total, 1):.0f} %"
            print(f"{self.what}: {done:,} of {total:,} ({share}) after {now - self.started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    run_command(app)
