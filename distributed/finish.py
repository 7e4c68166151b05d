"""The end of a run: test metrics under the best checkpoint, embeddings, report, summary."""

import json
from collections.abc import Mapping
from typing import Any

from allpairs.embeddings import EmbeddingSet
from allpairs.files import write_text
from distributed.data import open_dataset
from distributed.data.batch import describe_dropped, dropped_metrics, dropped_so_far
from distributed.data.dataset import shared_pictures
from distributed.data.sources.shuffled import note_of
from distributed.data.texts import describe_shared
from distributed.elastic import workers_over_time
from distributed.evaluation import embedding_set, encode, engine_columns, origin_of
from distributed.loop import Training
from distributed.progress import duration
from distributed.tracking.examples import examples
from distributed.tracking.redact import redact
from retrieval_eval.cross_check import cross_check
from retrieval_eval.page import write_report
from retrieval_eval.report import Report
from retrieval_eval.run_files import read_rows
from retrieval_eval.uncertainty import intervals


def complete(training: Training) -> dict[str, Any] | None:
    """Train to the end and finish; return the final metrics on rank 0 of a run that reached its end, else None.

    Collective.

    Raises:
        Stopped: on all ranks together, with the reason.
    """
    summary = None
    try:
        training.run()
        if training.finished:
            summary = finish(training)
    finally:
        training.close(summary)
    return summary


def finish(training: Training) -> dict[str, Any] | None:
    """Evaluate the best checkpoint on `data.test` (without one: on `data.val`), write its model and the report.

    Collective; returns the final metrics on rank 0, None elsewhere. The summary is written last: it says "finished".
    """
    config, run, progress = training.config, training.run_dir, training.progress
    split = config.data.splits[-1]
    dataset = training.open_split(split)
    checkpoint = training.checkpoints.load_best(training.strategy)
    with training.strategy.whole(training.encoder):
        encoded = encode(training.encoder, dataset, training.vocabulary, config, training.world)
    if encoded is None:
        return None
    report = encoded.evaluate(config.eval.engine)
    training.checkpoints.export(checkpoint, run.model)
    assert progress.best_rsum is not None, "the last epoch is always evaluated"
    assert progress.best_epoch is not None
    metrics = {f"{split}/{name}": value for name, value in report.metrics.items()}
    metrics |= dropped_metrics(split, encoded.dropped) | engine_columns(split, report)
    training.tracker.log(training.where() | metrics)
    objective = training.strategy.step.objective
    origin = origin_of(config, checkpoint, training.checkpoints.step_of(checkpoint), objective)
    embeddings = embedding_set(encoded, dataset, split, origin, max_image_pixels=config.data.max_image_pixels)
    embeddings.write(run.embeddings(split))
    shared = open_dataset(config.data.folder("train")).texts().shared().metrics("train")
    _write_page(training, embeddings, report, shared)
    if config.tracking.examples:
        training.tracker.log_examples(embeddings, examples(embeddings, report, config.tracking.examples))
    summary = (
        metrics
        | shared
        | dropped_so_far(run.history())
        | {
            "val/best_rsum": progress.best_rsum,
            "val/best_epoch": progress.best_epoch,
            "train/seconds": progress.train_seconds,
            "samples_seen": progress.samples_seen,
            "step": progress.step,
            "certificate": progress.certificate,
            "workers": training.world.size,
            "resizes": sum("train/workers_before" in row for row in run.history()),
        }
    )
    write_text(run.summary, json.dumps(summary, indent=1))
    return summary


def _write_page(training: Training, embeddings: EmbeddingSet, report: Report, shared: Mapping[str, float]) -> None:
    write_report(
        training.run_dir.report,
        embeddings,
        report,
        history=training.run_dir.history(),
        title=training.config.run.name,
        config=redact(training.config.model_dump(mode="json")),
        facts=_facts(training) | _facts_of_data(training, shared),
        cross_check=None if report.searched else cross_check(report, embeddings.images, embeddings.captions),
        intervals=intervals(report) if len(embeddings.images) > 1 else None,  # of one image nothing can be redrawn
    )


def _facts(training: Training) -> dict[str, str]:
    """Return what a reader of the report asks first: when, with what, how long."""
    origin = json.loads(training.run_dir.provenance.read_text(encoding="utf-8"))
    config = training.config
    return {
        "Started": origin["started"],
        "Commit": _commits(origin),
        "Workers": f"{workers_over_time(training.run_dir.history(), training.world.size)} on "
        f"{training.world.device.type}",
        "Strategy": f"{config.train.strategy}, {config.train.precision}",
        "Samples": _samples(training),
        "Training time": duration(training.progress.train_seconds),
        "Best epoch": f"{training.progress.best_epoch:.4g} of {training.where()['epoch']:.4g}",
        "Versions": ", ".join(f"{name} {origin['packages'][name]}" for name in ("torch", "ray")),
    }


def _commits(origin: Mapping[str, Any]) -> str:
    """Name the code that the run began with and, where it is another, that of each session that went on with it."""
    told = [
        f"{facts['git_commit'] or 'unknown'}{' with local changes' if facts['git_dirty'] else ''}"
        for facts in (origin, *origin.get("resumed", ()))
    ]
    return ", then ".join(commit for place, commit in enumerate(told) if place == 0 or commit != told[place - 1])


def _samples(training: Training) -> str:
    """Say what the run was trained on in a form that compares: the same chain, the same negatives in every step."""
    starts = sum(event["event"] == "placed" for event in read_rows(training.run_dir.events))
    again = f", gone on with {starts - 1} times" if starts > 1 else ""
    chain = training.progress.certificate
    return f"{training.progress.samples_seen:,} in {training.progress.step:,} steps{again}; certificate {chain}"


def _facts_of_data(training: Training, shared: Mapping[str, float]) -> dict[str, str]:
    """Return what the data did to the figures: samples dropped, captions shuffled or equal, pictures in two splits."""
    data = training.config.data
    facts = {"Dropped samples": describe_dropped(dropped_so_far(training.run_dir.history())) or "none"}
    datasets = {split: open_dataset(data.folder(split)) for split in data.splits}
    if (shuffled := note_of(datasets["train"].manifest)) is not None:
        facts["Shuffled captions"] = shuffled
    if alike := describe_shared(shared, "train"):
        how = "negatives of each other" if data.equal_captions == "negatives" else "masked in training"
        facts["Equal captions"] = f"{alike}; {how}"
    repeated = shared_pictures(datasets)
    return facts | ({"Pictures in two splits": "; ".join(repeated)} if repeated else {})
