"""What the service adds to a training step: its loop beside a bare DistributedDataParallel loop, steps in turn.

    python -m benchmarks.step_overhead [--config configs/scenes.yaml] [--steps 120] [section.key=value ...]

Two ranks over gloo, each a process of one thread, without Ray, which no step calls. In every rank the service trains as
`distributed.train` would have it (agreeing on every batch and on a finite loss, certificate, rows of metrics,
checkpoints), and whenever it begins a step the bare loop makes one first: same encoder and objective, same readers,
forward, backward, clip, AdamW, average of the weights. So both meet the same load of the machine. Medians per step of
rank 0; "processor" is its own time on the processor, which neighbours disturb less.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from allpairs.errors import UserError
from allpairs.models import build
from allpairs.objectives import make
from distributed.beginning import open_reader
from distributed.config import Config, load
from distributed.data import Position
from distributed.heartbeat import READING
from distributed.launch import set_up
from distributed.loop import Training
from distributed.step import Pairs
from distributed.world import World

CPU = torch.device("cpu")
_WARM = 10
"""Steps that are not counted."""


class EncoderAndLoss(nn.Module):
    """What DistributedDataParallel wraps."""

    def __init__(self, config: Config, words: int) -> None:
        super().__init__()
        self.encoder = build(config.model, words)
        self.objective = make(config.objective.name, **config.objective.arguments())

    def forward(self, pairs: Pairs) -> Tensor:
        """Return the loss over both ranks' pairs."""
        images, texts = self.encoder(pairs.images, pairs.tokens_cL, pairs.lengths_c)
        ids = {"query_ids": pairs.image_ids_b, "candidate_ids": pairs.caption_ids_c}
        loss: Tensor = self.objective(images, texts, **ids, group=dist.group.WORLD)
        return loss


class BareLoop:
    """The loop one writes: no more than the step, over the batches that the service's reader gives."""

    def __init__(self, training: Training) -> None:
        config = training.config
        torch.manual_seed(config.train.seed)
        whose = (training.world, training.run_dir, training.encoder, training.vocabulary)
        self._reader, _ = open_reader(config, *whose, say=lambda _: None)
        self._batches = self._reader.batches(Position(config.train.seed, 0, 0))
        self._epoch = 0
        self._model = EncoderAndLoss(config, len(training.vocabulary)).train()
        self._parallel = DistributedDataParallel(self._model, gradient_as_bucket_view=True)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=config.optimizer.lr)
        decay = config.train.ema_decay
        self._average = decay and AveragedModel(self._model.encoder, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._clip = config.optimizer.clip_norm or float("inf")
        self._seed = config.train.seed
        self.losses: list[float] = []

    def step(self) -> None:
        """Train one step."""
        batch = next(self._batches, None)
        if batch is None or batch.position.epoch > self._epoch + 1:
            raise RuntimeError("the reader gave no batch")
        loss = self._parallel(Pairs.of(batch, CPU))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        if self._average:
            self._average.update_parameters(self._model.encoder)
        self.losses.append(float(loss.detach()))
        if batch.position.epoch > self._epoch:
            self._epoch = batch.position.epoch
            self._batches.close()
            self._batches = self._reader.batches(Position(self._seed, self._epoch, 0))


def rank_of_two(rank: int, path: Path, steps: int) -> None:
    """One rank: both loops, in turn; rank 0 leaves its seconds in `times.json` beside the configuration."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path.parent}/meet", rank=rank, world_size=2)
    config = load(path)
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "service": []}
    clock = [(time.perf_counter(), time.thread_time())]
    loops: list[BareLoop] = []

    def turn(step: int, doing: str) -> None:
        """The service begins a step, and so ends the one before: the bare loop goes first."""
        if doing != READING or not loops:
            return
        _lap(seconds["service"], clock)
        loops[0].step()
        _lap(seconds["bare"], clock)
        if len(seconds["bare"]) >= steps:
            asked.append(True)

    asked: list[bool] = []
    training = Training(config, World.join(CPU), lambda row: None, turn, lambda: bool(asked))
    loops.append(BareLoop(training))
    training.run()
    if rank == 0:
        (path.parent / "times.json").write_text(json.dumps(seconds), encoding="utf-8")
    training.close(None)
    dist.barrier()


def _lap(laps: list[tuple[float, float]], clock: list[tuple[float, float]]) -> None:
    now = (time.perf_counter(), time.thread_time())
    laps.append((now[0] - clock[0][0], now[1] - clock[0][1]))
    clock[0] = now


def main() -> None:
    parser = argparse.ArgumentParser(description="What the service adds to a training step.")
    parser.add_argument("--config", type=Path, default=Path("configs/scenes.yaml"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = (f"run.dir={folder}", "run.name=overhead", "tracking.wandb=disabled", "cluster.workers=2")
        try:
            run = set_up(load(given.config, [*given.overrides, *where]), resume=False)
        except UserError as error:
            parser.exit(2, f"error: {error}\n")
        print(f"{given.steps} steps of each", file=sys.stderr)
        torch.multiprocessing.spawn(rank_of_two, args=(run.config, given.steps), nprocs=2)
        seconds = json.loads((run.root / "times.json").read_text(encoding="utf-8"))
    table = Table("loop", "ms a step, median", "ratio", "processor, ms", "ratio", title=str(given.config))
    medians = {
        name: [1000 * statistics.median(lap[kind] for lap in laps[_WARM:]) for kind in (0, 1)]
        for name, laps in seconds.items()
    }
    for name, values in medians.items():
        row = [f(value, base) for value, base in zip(values, medians["bare"], strict=True) for f in (_ms, _ratio)]
        table.add_row(name, *row)
    Console(width=100).print(table)


def _ms(value: float, base: float) -> str:
    return f"{value:.1f}"


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.3f}"


if __name__ == "__main__":
    main()
