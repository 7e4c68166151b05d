"""``python -m retrieval_eval.evaluate``: measure the embeddings of a run, or two galleries of your own, and report.

    python -m retrieval_eval.evaluate --run runs/emoji --split val
    python -m retrieval_eval.evaluate --run runs/a runs/b --protocol coco-1k-5fold --out ensemble --export ensemble
    python -m retrieval_eval.evaluate --embeddings runs/emoji/embeddings/coco-test --out there
    python -m retrieval_eval.evaluate --queries images.npy --gallery captions.npy --positives positives.json --out here

A run brings embeddings of the split that training was measured on at its end; ``python -m distributed.embed`` makes
those of other splits, and of other data. Several are measured as an ensemble: the mean of their score matrices.
``positives.json`` is a list with one list of gallery indices per query. Embeddings are ranked by their inner product,
with ``--cosine`` by cosine similarity: the same where all are of one length, as those of a run are.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import App, Parameter

from allpairs.command import run as run_command
from allpairs.embeddings import EmbeddingSet, read_matrix
from allpairs.errors import UserError
from allpairs.files import check_folder_to_write, existing, read_json
from retrieval_eval.ensemble import ensemble
from retrieval_eval.evaluate import check_engine
from retrieval_eval.evaluate import evaluate as evaluate_matrices
from retrieval_eval.exports import FILES as EXPORTED
from retrieval_eval.folds import Gallery, MeasuredFold
from retrieval_eval.indexes.probe import require_faiss
from retrieval_eval.manifest import manifest_of
from retrieval_eval.measure import CountingOptions, default_device, measure
from retrieval_eval.norms import Norms
from retrieval_eval.output import FILES as REPORT
from retrieval_eval.output import EvaluationOutput
from retrieval_eval.protocols import find_protocol
from retrieval_eval.run_files import embeddings_of, read_config, read_rows
from retrieval_eval.subset import read_subset
from retrieval_eval.uncertainty import clusters_of

app = App(name="retrieval_eval.evaluate", help="Retrieval metrics, exact by default, and a report in one HTML file.")


@app.default
def evaluate(
    *,
    run: Annotated[
        list[Path] | None,
        Parameter(
            help="Folder of a training run with embeddings/SPLIT; several: their ensemble.", consume_multiple=True
        ),
    ] = None,
    split: Annotated[
        str | None,
        Parameter(help="Split to read from the run, as `python -m distributed.embed` names it; default: test."),
    ] = None,
    embeddings: Annotated[
        list[Path] | None,
        Parameter(help="Folder of `python -m distributed.embed`; several: their ensemble.", consume_multiple=True),
    ] = None,
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
    cosine: Annotated[
        bool,
        Parameter(help="Rank by cosine similarity: normalise first. Without it: by the inner product.", negative=()),
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
    overwrite: Annotated[bool, Parameter(help="Replace what --out and --export hold already.", negative=())] = False,
    approximate: Annotated[
        str | None, Parameter(help="Also measure an approximate index (ivf, hnsw, pq, ivfpq): its gap to exact.")
    ] = None,
    shards: Annotated[int | None, Parameter(help="Ray actors to split the gallery over, whichever the engine.")] = None,
    engine: Annotated[
        str,
        Parameter(
            help="exact: count every rank; faiss: recalls from a search for the best of each query, on GPUs where FAISS"
            " can, compared with the count of all queries or of a sample."
        ),
    ] = "exact",
    state: Annotated[
        Path | None, Parameter(help="Folder for finished work: the same command goes on there after a kill.")
    ] = None,
) -> None:
    """Evaluate a run (--run), embeddings (--embeddings), or two galleries (--queries, --gallery, --positives)."""
    arrays = {"--queries": queries, "--gallery": gallery, "--positives": positives}
    sources = {"--run": run, "--embeddings": embeddings, "/".join(arrays): [file for file in arrays.values() if file]}
    given = [flag for flag, value in sources.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: each brings both sides; accepted: one of them")
    is_custom = protocol in (None, "custom")
    for flag, used, of in (
        ("--one-way", one_way and (run or embeddings), "--queries/--gallery: protocols measure both directions"),
        ("--split", split is not None and not run, "--run: it chooses among the embeddings of a run"),
        ("--subset", subset and queries, "--run and --embeddings: two .npy files are measured with all queries"),
        (f"--protocol {protocol}", not is_custom and queries, "--run and --embeddings: two .npy files are custom"),
    ):
        if used:
            raise UserError(f"{flag} is for {of}")
    for flag, folder, what, files in (("--out", out, "reports", REPORT), ("--export", export, "exports", EXPORTED)):
        if folder is not None:
            check_folder_to_write(flag, folder, what, overwrite=overwrite, patterns=files)
    if protocol is not None:
        find_protocol(protocol)
    if check_engine(engine) == "faiss":
        _check_search(export, state)
    if approximate is not None:
        from retrieval_eval.indexes.parameters import check_kind

        check_kind(approximate)
    with shown_progress("counting" if engine == "exact" else "searching") as progress:
        wanted = Wanted(cosine, out, CountingOptions(default_device(), shards, state, progress, engine))
        if run:
            split = split or "test"
            folders = [embeddings_of(folder, split) for folder in run]
            output = _of_embeddings(folders, run, split, protocol=protocol, subset=subset, wanted=wanted)
        elif embeddings:
            output = _of_embeddings(embeddings, [], None, protocol=protocol, subset=subset, wanted=wanted)
        elif queries is not None and gallery is not None and positives is not None:
            output = _of_matrices(queries, gallery, positives, one_way=one_way, wanted=wanted)
        else:
            missing = ", ".join(flag for flag, value in arrays.items() if value is None)
            raise UserError(
                f"nothing to evaluate: {missing} missing; accepted: --run, --embeddings, or all three of"
                f" {', '.join(arrays)}"
            )
    output.finish(with_intervals=intervals, export=export, approximate=approximate)


def _check_search(export: Path | None, state: Path | None) -> None:
    """Raise UserError, before anything is read, for what the engine faiss cannot do."""
    for flag, given in (("--export", export), ("--state", state)):
        if given is not None:
            raise UserError(f"{flag} is for --engine exact: it keeps what is counted for every rank")
    require_faiss("--engine faiss")


@dataclass(frozen=True)
class Wanted:
    """What is asked for whatever the embeddings."""

    cosine: bool
    out: Path | None
    options: CountingOptions


def _of_embeddings(
    folders: Sequence[Path],
    runs: Sequence[Path],
    split: str | None,
    *,
    protocol: str | None,
    subset: Path | None,
    wanted: Wanted,
) -> EvaluationOutput:
    """Measure embeddings, which are those of `split` of `runs` where there are runs."""
    owners = runs or folders
    names = [str(folder) for folder in owners]
    sets = [EmbeddingSet.read(existing(folder)) for folder in folders]
    joined = ensemble(sets, names, cosine=wanted.cosine)
    if protocol is None and len({one.protocol for one in sets}) > 1:
        raise UserError(
            f"the embeddings were made for different protocols ({', '.join(one.protocol for one in sets)})"
            "; accepted: one --protocol for all"
        )
    chosen = find_protocol(protocol or joined.protocol)
    joined.protocol = chosen.name
    asked = read_subset(subset, joined) if subset is not None else None
    measured = measure(joined, chosen, asked, wanted.options, names, cosine=wanted.cosine)
    run = runs[0] if len(runs) == 1 else None
    name = " + ".join(folder.resolve().name for folder in owners)
    # A run's own folder holds reports on whole splits, nothing else: that on the test split under the plain names.
    own = wanted.out is None and run is not None and asked is None
    return EvaluationOutput(
        name,
        f"{name} · {split or joined.split} · {chosen.name}" + (f" · {subset.name}" if subset is not None else ""),
        measured.report,
        measured.folds,
        measured.manifest,
        run if own else wanted.out,
        suffix=f"_{split}" if own and split != "test" else "",
        embeddings=measured.embeddings if len(measured.folds) == 1 else None,
        history=read_rows(run / "metrics.jsonl") if run is not None else [],
        config=read_config(run / "config.yaml") if run is not None else None,
    )


def _of_matrices(queries: Path, gallery: Path, positives: Path, *, one_way: bool, wanted: Wanted) -> EvaluationOutput:
    lists = read_json(positives)
    if not isinstance(lists, list) or not all(isinstance(row, list) for row in lists):
        raise UserError(f"{positives} must be a list with one list of gallery indices per query, as [[0, 1], [2]]")
    Q, G = read_matrix(queries), read_matrix(gallery)
    report = evaluate_matrices(
        Q,
        G,
        positives=lists,
        both_directions=not one_way,
        cosine=wanted.cosine,
        device=wanted.options.device,
        shards=wanted.options.shards,
        state=wanted.options.state,
        progress=wanted.options.progress,
        engine=wanted.options.engine,
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
    norms = Norms.of(Q), Norms.of(G)
    manifest = manifest_of("custom", [report], split=positives.name, data_hash=digest, norms=norms)
    name = f"{queries.name} · {gallery.name}"
    return EvaluationOutput(name, name, report, (fold,), manifest, wanted.out)


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
