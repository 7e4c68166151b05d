"""The training loop of one rank: pure torch.distributed, so that it runs under Ray Train and in plain processes alike.

Order of a step: read this rank's rows; agree with all ranks that everyone has a batch; seed dropout by (seed, step,
rank); encode, gather the embeddings, loss; agree that all are about to take the same step and that the loss is finite
everywhere; gradients, averaged over ranks; their norm, which must be finite; clip; optimiser; the objective's
constraints (a learned scale is clamped); advance the position; log.
Order at an epoch's end (and every `eval.every_steps`), which is what makes a restart exact: evaluate, choose the best,
checkpoint, tell Ray.
Resume order: weights and optimiser, position, then the reader from that position; dropout and captions are functions
of (seed, step) and (seed, epoch, sample), so there is no generator state to restore.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol

import torch

from allpairs.errors import UserError
from allpairs.files import read_json
from distributed.agreement import fingerprint, in_use, refuse_difference, require_same, same
from distributed.beginning import begin, mixed, open_reader
from distributed.cached import chunks_of
from distributed.certificate import digest, extend
from distributed.checkpoints import (
    Checkpoints,
    Progress,
    find_usable,
)
from distributed.clock import Clock
from distributed.compiling import NOTE
from distributed.config import Config
from distributed.data import Dataset, Position, TrainBatch, open_split
from distributed.data.batch import dropped_metrics
from distributed.data.dataset import CAUSES
from distributed.elastic import change_of_workers, reason_for, rows_at_once, with_rows_at_once
from distributed.evaluation import encode, engine_columns, loss_and_similarities
from distributed.guards import Guards
from distributed.heartbeat import READING, STEPPING
from distributed.interval import Collapse, Interval
from distributed.norms import StepNorms
from distributed.profiling import StepProfiler
from distributed.run_directory import RunDirectory, flat
from distributed.step import Pairs
from distributed.strategies import make_strategy
from distributed.strategies.optimizer import NonFiniteGradients, learning_rate_factor
from distributed.tracking import open_tracker
from distributed.world import Stopped, World
from retrieval_eval.indexes.probe import require_faiss
from retrieval_eval.run_files import read_rows

ReportMetrics = Callable[[dict[str, Any]], None]
"""Told the metrics of every evaluation, on every rank: `ray.train.report` or nothing."""

Heartbeat = Callable[[int, str], None]
"""Told where this rank stands, a step and what it does: `Heartbeat.at`, so that a rank that stands still is noticed."""


class MakeWay(Protocol):
    """How a run that is to get more workers tells its ranks, and ends them (`distributed.scaling`)."""

    @property
    def request(self) -> Callable[[], bool]:
        """Whether the ranks are asked to make way."""

    def hold(self) -> None:
        """Wait to be ended; return where nobody does."""


class Training:
    """One rank's share of a run, from its first step (or its last checkpoint) to the report."""

    def __init__(
        self,
        config: Config,
        world: World,
        report: ReportMetrics,
        heartbeat: Heartbeat = lambda step, doing: None,
        stop_asked: Callable[[], bool] = lambda: False,
        *,
        save_asked: Callable[[], bool] = lambda: False,
        make_way: MakeWay | None = None,
    ) -> None:
        self.config = config
        self.world = world
        self.report = report
        self.heartbeat = heartbeat
        self.stop_asked = stop_asked
        self.save_asked = save_asked
        self.make_way = make_way
        self.making_way = False
        self.stopping = False
        require_same(world, flat(config.model_dump(mode="json")))
        self.run_dir = RunDirectory(config.run_dir)
        self.found = find_usable(self.run_dir.checkpoints, world, self._say)
        step, self.vocabulary, self.average = world.together(
            lambda: begin(config, self.run_dir.root, None if self.found is None else self.found.folder, world.group)
        )
        if step.compiled:
            self._say(NOTE)
        if config.eval.engine == "faiss":
            world.together(lambda: require_faiss("eval.engine=faiss"))
        self.encoder = step.encoder if self.average is None else self.average.encoder.to(world.device)
        self.reader, self.recipe = world.together(
            lambda: open_reader(config, world, self.run_dir, self.encoder, self.vocabulary, say=self._say)
        )
        self.rows_at_once = rows_at_once(config, world.size)
        self.strategy = make_strategy(with_rows_at_once(config, self.rows_at_once), step, world)
        require_same(world, in_use(self.strategy.groups) | {"data.train": self.reader.dataset.manifest.index_sha256})
        if self.average is not None:
            self.strategy.place(self.encoder)
        folder, average = self.run_dir.checkpoints, self.average
        self.checkpoints = Checkpoints(
            folder,
            config.model,
            self.vocabulary,
            world,
            tell=self._say,
            average=average,
            also=lambda: None if self.recipe is None else self.recipe.kept(),
        )
        self.progress = self.checkpoints.restore(self.strategy, self.found) if self.found else Progress()
        if self.recipe is not None and self.progress.sample and self.progress.epoch >= config.train.triplet_epochs:
            self.world.together(self._restore_division)
        self.guards = Guards(self.strategy, self.average, world)
        self.guards.saved_step = self.progress.step if self.found else None
        self.dropped_before = Counter(self.progress.dropped)
        facts = read_json(self.run_dir.provenance) if world.rank == 0 else {}
        self.tracker = open_tracker(config, self.run_dir, rank=world.rank, resume_step=self.progress.step, facts=facts)
        self.interval = Interval(self.progress.train_seconds)
        self.clock = self.strategy.step.clock = Clock(world.device)
        self.profiler: StepProfiler | None = None
        if config.tracking.profile == "all" or (config.tracking.profile == "rank0" and world.rank == 0):
            self.profiler = StepProfiler(self.run_dir, world.rank, self.clock, world.device, self._say)
        self.collapse = Collapse()
        self.saved_at = time.monotonic()
        self.save_due = False
        self._tell_workers()

    def _say(self, text: str) -> None:
        """Have the driver say one line of rank 0's."""
        if self.world.rank == 0:
            self.run_dir.note("note", text)

    def _tell_workers(self) -> None:
        """Say that there are more or fewer workers than before, and keep it among the metrics."""
        progress, size = self.progress, self.world.size
        before, progress.workers = progress.workers, size
        if before is None:  # a run that begins, or a checkpoint of an earlier version
            elastic = self.config.cluster.min_workers is not None and progress.step == 0
            before = self.config.cluster.workers if elastic else size
        if before == size or self.world.rank != 0:
            return
        why = reason_for(read_rows(self.run_dir.events), size)
        text, row = change_of_workers(self.config, before, size, progress.step, why)
        self.run_dir.note("resized", text, workers=size)
        self.tracker.log(self.where() | row)

    def _restore_division(self) -> None:
        assert self.recipe is not None
        assert self.found is not None
        self.recipe.restore(self.found.folder, self.progress.epoch, self.epochs)

    def open_split(self, split: str) -> Dataset:
        """Open a split to measure on, shards compared where the driver's look doesn't hold. Collective.

        Raises:
            Stopped: on all ranks, where any of them finds it altered.
        """
        known = self.run_dir.verified(split)
        return self.world.together(lambda: open_split(self.config.data, split, known=known, say=self._say))

    @property
    def epochs(self) -> float:
        """Epochs of the whole run."""
        return self.total_steps / self.reader.steps_per_epoch

    @cached_property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.reader.steps_of(self.config.train.samples_of(self.reader.samples_per_epoch))

    @property
    def stop_step(self) -> int:
        """Steps after which this session ends: all of them, or fewer by `train.stop_after_epochs`."""
        limit = self.config.train.stop_after_epochs
        return self.total_steps if limit is None else min(self.total_steps, round(limit * self.reader.steps_per_epoch))

    @property
    def finished(self) -> bool:
        """Whether every step of the whole run is done."""
        return self.progress.step >= self.total_steps

    def run(self) -> None:
        """Train to the end, to `stop_step`, or, once any rank's `stop_asked` says so, to the step all agree on.

        Raises:
            Stopped: on all ranks together, with the reason.
        """
        try:
            while self.progress.step < self.stop_step and not self.stopping:
                self._epoch()
        except Stopped:
            self._finish_saving()  # what was good when it was copied is kept
            raise
        self._finish_saving()

    def _finish_saving(self) -> None:
        self.heartbeat(self.progress.step, "writing a checkpoint")
        self.checkpoints.wait()

    def close(self, summary: dict[str, float] | None) -> None:
        """Flush what was measured; without a `summary` the run is not finished."""
        if self.profiler is not None:
            self.profiler.close()
        self.tracker.close(summary)

    def _epoch(self) -> None:
        """Train from the current position to the end of its epoch, or to `stop_step`."""
        progress = self.progress
        if self.recipe is not None and progress.sample == 0 and progress.epoch >= self.config.train.triplet_epochs:
            self.heartbeat(progress.step, "dividing the training pairs")
            with self.strategy.whole(self.encoder):
                self.recipe.divide(self.encoder, self.vocabulary, progress.epoch, self.epochs)
        batches = self.reader.batches(Position(self.config.train.seed, progress.epoch, progress.sample))
        every, compare = self.config.train.checkpoint_every_steps, self.config.train.compare_every_steps
        started = time.perf_counter()
        try:
            while progress.step < self.stop_step:
                batch = self._next(batches)
                if batch is None:
                    self.stopping = True
                    if not self.interval.empty:
                        self._log_interval(force=True)
                    if self.guards.saved_step != progress.step:
                        self._save(best=False)
                    return
                self._step(batch)
                if compare and progress.step % compare == 0:
                    self._compare_ranks()
                epoch_ended = batch.position.epoch > progress.epoch
                progress.epoch, progress.sample = batch.position.epoch, batch.position.sample
                progress.train_seconds += time.perf_counter() - started
                self._log_interval(force=epoch_ended or progress.step == self.stop_step)
                if epoch_ended or progress.step == self.total_steps or self._evaluates_at(progress.step):
                    self._measure_and_save(epoch_ended)
                elif progress.step == self.stop_step or (every and progress.step % every == 0) or self.save_due:
                    self._save(best=False)
                if self.making_way and progress.step < self.stop_step:
                    self._hold()
                if epoch_ended:
                    return
                started = time.perf_counter()
        finally:
            batches.close()

    def _compare_ranks(self) -> None:
        with self.clock.timing("agree"):
            self.guards.compare(self.progress.step)

    def _save(self, *, best: bool) -> None:
        if self.config.train.compare_every_steps is not None:
            self._compare_ranks()
        self.heartbeat(self.progress.step, "writing a checkpoint")
        with self.clock.timing("save"):
            self.checkpoints.save(self.strategy, self.progress, best=best)
        self.guards.saved_step = self.progress.step
        self.saved_at = time.monotonic()

    def _hold(self) -> None:
        """Save this step, and wait to be ended and to begin again among more workers."""
        assert self.make_way is not None
        if self.guards.saved_step != self.progress.step:
            if not self.interval.empty:
                self._log_interval(force=True)
            self._save(best=False)
        self._finish_saving()
        self.heartbeat(self.progress.step, "making way")
        self.make_way.hold()

    def _next(self, batches: Iterator[TrainBatch]) -> TrainBatch | None:
        """Read this rank's slice; None once any rank was asked to stop.

        All ranks learn of a failure, of bad samples and of the request, wherever it was heard, before anyone goes on;
        by rank 0's clock, that a checkpoint is due after this step; and that all have written theirs, which is
        published then.
        """
        batch, reason = None, None
        self.heartbeat(self.progress.step + 1, READING)
        try:
            with self.clock.timing("read"):
                batch = next(batches)
        except UserError as error:
            reason = str(error)
        self.heartbeat(self.progress.step + 1, STEPPING)
        dropped = [self.reader.bad[cause] for cause in CAUSES]
        with self.clock.timing("agree"):
            failed, seen, stop, due, way, written, *bad = self.world.sum(
                [
                    reason is not None,
                    self.reader.seen,
                    self.stop_asked(),
                    self._due(),
                    self.make_way is not None and self.make_way.request(),
                    self.checkpoints.written,
                    *dropped,
                ]
            )
        if written == self.world.size:
            with self.clock.timing("save"):
                self.checkpoints.publish()
        self.save_due, self.making_way = bool(due), bool(way)
        limit = self.config.data.max_bad_fraction
        if not failed and sum(bad) > limit * max(seen, min(1000, len(self.reader.dataset))):
            failed = 1
            if self.reader.bad:
                causes = ", ".join(f"{count} {cause}" for cause, count in self.reader.bad.most_common())
                reason = (
                    f"unusable samples: {causes} of {self.reader.seen} read here, above data.max_bad_fraction={limit}"
                )
        if failed:
            self.world.raise_reasons(reason)
        assert batch is not None
        if stop:
            return None
        self.progress.dropped = dict(self.dropped_before + Counter(dict(zip(CAUSES, map(int, bad), strict=True))))
        return batch

    def _due(self) -> bool:
        """Whether rank 0, whose word counts, wants a checkpoint: by its clock `train.checkpoint_every_minutes` have
        passed, or it was asked for one."""
        minutes = self.config.train.checkpoint_every_minutes
        if self.world.rank != 0:
            return False
        return self.save_asked() or (minutes is not None and time.monotonic() - self.saved_at >= minutes * 60)

    def _step(self, batch: TrainBatch) -> None:
        """Forward, agree that all train alike and that the loss is finite, backward, update if the gradients are."""
        progress = self.progress
        seed = mixed(self.config.train.seed, progress.step, self.world.rank)
        torch.manual_seed(seed)
        factor = self._learning_rate_factor(progress.step)
        with self.clock.timing("copy"):
            pairs = Pairs.of(batch, self.world.device)
        self.strategy.step.warming_up = progress.epoch < self.config.train.triplet_epochs
        micro = self.rows_at_once
        chunks = 1 if micro is None else chunks_of(batch.global_rows, self.world.size, micro)
        output = self.strategy.forward(pairs, chunks)
        with self.clock.timing("loss"):
            value = float(output.loss.detach())
        finite = value - value == 0
        # The mean over ranks of what each rank contributes is the loss of the global batch.
        with self.clock.timing("agree"):
            settings = self._in_use(factor)
            loss, broken, one, square, *digests = self.world.sum(
                [
                    value / self.world.size if finite else 0.0,
                    not finite,
                    *fingerprint(settings),
                    *digest(batch.keys, batch.captions),
                ]
            )
        if not same((one, square), self.world.size):
            refuse_difference(self.world, settings)
        if broken:
            rows = {"image": output.images_bD, "caption": output.texts_cD}
            self.guards.refuse_loss(value, self._coming, rows, batch.keys)
        with self.clock.timing("backward"):
            self.strategy.backward(output.loss)
        norms = StepNorms(self.strategy.step) if self._measures(batch) else None
        with self.clock.timing("optimizer"):
            try:
                norm = self.strategy.update(factor)
            except NonFiniteGradients:
                self.guards.blame(self._coming, pairs, chunks, seed)
            if self.average is not None:
                self.average.update(self.strategy.step.encoder)
        progress.step += 1
        progress.samples_seen += batch.global_rows
        progress.certificate = extend(progress.certificate, progress.step, digests)
        lengths = {} if norms is None else norms.measure(self.world)
        if self.profiler is not None:
            self.profiler.stepped(progress.step)
        self.interval.add(loss, {"train/gradient_norm": norm} | lengths, batch.global_rows, pairs, output)

    def _measures(self, batch: TrainBatch) -> bool:
        """Whether a row of metrics follows the step of `batch`."""
        step, progress = self.progress.step + 1, self.progress
        return (
            step % self.config.train.log_every == 0 or step == self.stop_step or batch.position.epoch > progress.epoch
        )

    def _in_use(self, factor: float) -> dict[str, Any]:
        """Return what this step is about to be taken with: its learning rate, and the optimiser's settings."""
        rate = self.config.optimizer.lr * factor
        return {f"the learning rate of step {self.progress.step + 1:,}": rate} | in_use(self.strategy.groups)

    def _learning_rate_factor(self, step: int) -> float:
        return learning_rate_factor(self.config.optimizer, step, self.reader.steps_per_epoch, self.total_steps)

    @property
    def _coming(self) -> str:
        """The step that is not done yet, in words."""
        return f"step {self.progress.step + 1} (epoch {self.progress.epoch + 1})"

    def _log_interval(self, *, force: bool) -> None:
        """Every `train.log_every` steps: one row of metrics. The similarities are collective, the row is rank 0's."""
        progress = self.progress
        if not force and progress.step % self.config.train.log_every:
            return
        row = self.interval.measure(self.world, progress.train_seconds, self.clock.take())
        self.interval = Interval(progress.train_seconds)
        self.collapse.add(row)
        remaining = (self.total_steps - progress.step) * progress.train_seconds / progress.step
        self.tracker.log(
            self.where()
            | row
            | {f"train/{name}": value for name, value in self.strategy.step.objective.learned().items()}
            | dropped_metrics("train", progress.dropped)
            | (self.recipe.metrics() if self.recipe is not None else {})
            | {"train/learning_rate": self.config.optimizer.lr * self._learning_rate_factor(progress.step - 1)}
            | {"train/certificate": progress.certificate}
            | {"train/seconds": progress.train_seconds, "train/eta_seconds": remaining}
        )

    def where(self) -> dict[str, float]:
        """Name the point of training a row belongs to; an epoch counts as done with its last step."""
        progress = self.progress
        return {
            "step": progress.step,
            "epoch": progress.epoch + progress.sample / self.reader.samples_per_epoch,
            "samples_seen": progress.samples_seen,
        }

    def _evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after `step`, inside of an epoch."""
        every = self.config.eval.every_steps
        return every is not None and step % every == 0

    def _measure_and_save(self, epoch_ended: bool) -> None:
        """Evaluate if due, choose the best, checkpoint, report."""
        progress = self.progress
        due = self._evaluates_at(progress.step)
        if epoch_ended and self.config.eval.every_steps is None:
            due = progress.epoch % self.config.eval.every == 0
        metrics: dict[str, Any] = {}
        improved = False
        self.heartbeat(progress.step, "evaluating")
        if due or progress.step == self.total_steps:
            metrics, improved = self._evaluate()
        self._save(best=improved)
        if metrics:
            self.report(metrics | {"epoch": self.where()["epoch"]})

    def _evaluate(self) -> tuple[dict[str, Any], bool]:
        """Measure `data.val`; return its metrics (the same on all ranks) and whether this is the best epoch so far."""
        started = time.perf_counter()
        dataset = self.open_split("val")
        with self.strategy.whole(self.encoder):
            encoded = encode(self.encoder, dataset, self.vocabulary, self.config, self.world)
        metrics: dict[str, float] = {}
        engine: dict[str, Any] = {}
        if encoded is not None:
            objective = self.strategy.step.objective
            report = encoded.evaluate(self.config.eval.engine)
            engine = engine_columns("val", report)
            metrics = report.metrics | loss_and_similarities(encoded, objective, self.config.train.global_batch)
        rsum = self.world.sum([metrics.get("rsum", 0.0)])[0]
        progress = self.progress
        best = rsum if progress.best_rsum is None else max(rsum, progress.best_rsum)
        improved = best != progress.best_rsum
        if improved:
            progress.best_rsum, progress.best_epoch = best, self.where()["epoch"]
        row = {f"val/{name}": value for name, value in metrics.items()} | engine
        row |= dropped_metrics("val", encoded.dropped) if encoded is not None else {}
        row |= {"val/rsum": rsum, "val/best_rsum": best, "val/seconds": time.perf_counter() - started}
        # While the learning rate still rises nothing is to be said.
        warm = progress.epoch > self.config.optimizer.warmup_epochs + 1
        if self.collapse.found(rsum, len(dataset)) and warm and not improved:
            row["val/collapsing"] = 1.0
        self.tracker.log(self.where() | row)
        return row, improved
