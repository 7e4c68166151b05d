"""What each strategy costs and keeps: time, memory, gradient error against one rank, the wait for a checkpoint.

    python -m benchmarks.strategies [--batch 64] [--steps 6] [--world 2] [--width 256] [--layers 6]

A CLIP of two small transformers with a learned scale, random pictures and words, two processes on this machine over
gloo, each strategy in processes of its own, one after the other.

- held: bytes of all tensors that a rank holds between two steps (weights, gradients, optimiser's state, buffers).
- peak: the highest resident memory of a step beyond what the process had before the model was made.
- error: the largest difference of a gradient's element from the one that a single rank computes in float64, as a part
  of the largest element; read off AdamW's first moment after a step with β₁ = 0, which is the gradient.
- save: how long training stands still for a checkpoint, and what part of a minute that is.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch import Tensor

from allpairs.models import Vocabulary, build
from allpairs.objectives import make
from benchmarks.loss_cpu import memory
from distributed.checkpoints import Checkpoints, Progress
from distributed.config import Config, validate
from distributed.step import Pairs, TrainStep
from distributed.strategies import Strategy, make_strategy
from distributed.world import World

WORDS, LENGTH, SIDE = 2000, 16, 32

WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ZeRO-1": {"strategy": "deepspeed", "zero_stage": 1},
    "ZeRO-2": {"strategy": "deepspeed", "zero_stage": 2},
    "ZeRO-3": {"strategy": "deepspeed", "zero_stage": 3},
    "ZeRO-3, nothing kept whole": {"strategy": "deepspeed", "zero_stage": 3}
    | {"deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
    "fsdp2": {"strategy": "fsdp2"},
}


def settings(width: int, layers: int, batch: int, world: int, way: dict[str, Any]) -> Config:
    """Return a run's configuration; nothing of it but model, strategy and batch is looked at."""
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    tower |= {"num_attention_heads": width // 32}
    config = {
        "text_config": tower | {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "bos_token_id": 1}
        | {"eos_token_id": 2, "pad_token_id": 0},
        "vision_config": tower | {"image_size": SIDE, "patch_size": 8},
        "projection_dim": width,
    }  # fmt: skip
    return validate(
        {
            "run": {"name": "strategies"},
            "model": {"kind": "transformers", "name": "clip", "pretrained": False, "config": config},
            "optimizer": {"clip_norm": None, "weight_decay": 0.0, "warmup_epochs": 0, "betas": (0.0, 0.999)},
            "train": way | {"global_batch": batch},
            "cluster": {"workers": world},
        }
    )


def batch_of(rows: slice, batch: int) -> Pairs:
    """Return this rank's rows of the batch that all runs see."""
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    tokens = torch.randint(3, WORDS, (batch, LENGTH), generator=draw)
    ids, lengths = torch.arange(batch), torch.full((batch,), LENGTH)
    return Pairs(images[rows], tokens[rows], lengths[rows], ids[rows], ids[rows])


def made(config: Config, world: World, dtype: torch.dtype) -> Strategy:
    """Return the strategy with the same initial weights everywhere."""
    torch.manual_seed(0)
    objective = make("vlc", scale=10.0, learn_scale=True).to(dtype)
    encoder = build(config.model, WORDS).to(dtype).train()
    return make_strategy(config, TrainStep(encoder, objective, world.group, "fp32"), world)


def step_once(strategy: Strategy, config: Config, world: World) -> None:
    """Forward, backward, update."""
    share = config.train.global_batch // world.size
    pairs = batch_of(slice(world.rank * share, (world.rank + 1) * share), config.train.global_batch)
    strategy.backward(strategy.forward(pairs).loss)
    strategy.update(1.0)


def gradients(config: Config, world: World, dtype: torch.dtype) -> list[tuple[str, int, Tensor]]:
    """Return this rank's part of one step's gradients: AdamW's first moment after a step with β₁ = 0."""
    strategy = made(config, world, dtype)
    step_once(strategy, config, world)
    return [(piece.name, piece.start, piece.moments["exp_avg"].double()) for piece in strategy.moments()]


def held() -> int:
    """Return the bytes of all tensors that this process holds, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def cost(config: Config, world: World, steps: int, folder: Path) -> dict[str, float]:
    """Return seconds of a step and of the wait for a checkpoint, bytes held and at the peak."""
    build(config.model, WORDS)  # what is imported is no part of a strategy
    if config.train.strategy == "deepspeed":
        import deepspeed  # noqa: F401
    empty, resident = held(), memory("VmRSS")
    strategy = made(config, world, torch.float32)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    seconds = []
    for _ in range(steps):
        world.barrier()
        started = time.perf_counter()
        step_once(strategy, config, world)
        seconds.append(time.perf_counter() - started)
    peak = memory("VmHWM") - resident
    checkpoints = Checkpoints(folder, config.model, Vocabulary.build(["a"]), world)
    waits = []
    for number in range(3):
        started = time.perf_counter()
        checkpoints.save(strategy, Progress(step=number), best=False)
        waited = time.perf_counter() - started
        while world.sum([checkpoints.written])[0] < world.size:
            step_once(strategy, config, world)
        started = time.perf_counter()
        checkpoints.publish()
        waits.append(waited + time.perf_counter() - started)
    found = {"seconds": statistics.median(seconds[1:]), "wait": statistics.median(waits), "peak": peak}
    return found | {"held": held() - empty}


def rank_main(rank: int, world_size: int, config: Config, steps: int, folder: Path) -> None:
    """Measure on one of the ranks; leave what it finds in `folder`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    world = World.join(torch.device("cpu"))
    found: dict[str, Any] = {} if steps == 0 else cost(config, world, steps, folder / "checkpoints")
    dtypes = (torch.float32,) if config.train.strategy == "deepspeed" else (torch.float32, torch.float64)
    found["gradients"] = {str(dtype): gradients(config, world, dtype) for dtype in dtypes}
    torch.save(found, folder / f"rank{rank}.pt")
    world.barrier()
    os._exit(0)  # without the teardown, in which ranks of gloo sometimes abort


def measure(config: Config, world: int, steps: int) -> list[dict[str, Any]]:
    """Return what each rank finds, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (world, config, steps, Path(folder)), nprocs=world)
        return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def error(ranks: list[dict[str, Any]], dtype: torch.dtype, truth: dict[str, Tensor]) -> float | None:
    """Return the largest difference from `truth`, as a part of its largest element; every element must be there."""
    if str(dtype) not in ranks[0]["gradients"]:
        return None
    worst, counted = 0.0, 0
    for found in ranks:
        for name, start, values in found["gradients"][str(dtype)]:
            worst = max(worst, float((values - truth[name][start : start + len(values)]).abs().max()))
            counted += len(values)
    assert counted == sum(map(len, truth.values())), "gradients are missing, or there twice"
    return worst / max(float(values.abs().max()) for values in truth.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, memory and gradients of every strategy.")
    for name, default in (("batch", 64), ("steps", 6), ("world", 2), ("width", 256), ("layers", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()

    def of(way: dict[str, Any], world: int) -> Config:
        return settings(given.width, given.layers, given.batch, world, way)

    (alone,) = measure(of(WAYS["ddp"], 1), 1, 0)
    truth = {name: values for name, _, values in alone["gradients"][str(torch.float64)]}
    parameters = sum(map(len, truth.values()))
    title = f"{parameters / 1e6:.1f} M parameters, global batch {given.batch}, {given.world} ranks of one thread"
    table = Table("strategy", "ms a step", "held, MiB", "peak, MiB", "error, float32", "float64", "save, ms", "of 60 s")
    table.title = title
    table.add_row("one rank", "", "", "", f"{error([alone], torch.float32, truth):.1e}", "", "", "")
    rows = {}
    for name, way in WAYS.items():
        print(name, file=sys.stderr)
        ranks = measure(of(way, given.world), given.world, given.steps)
        most = {key: max(found[key] for found in ranks) for key in ("seconds", "wait", "peak", "held")}
        double = error(ranks, torch.float64, truth)
        table.add_row(
            name,
            f"{1000 * most['seconds']:.0f}",
            f"{most['held'] / 2**20:.0f}",
            f"{most['peak'] / 2**20:.0f}",
            f"{error(ranks, torch.float32, truth):.1e}",
            "–" if double is None else f"{double:.1e}",
            f"{1000 * most['wait']:.0f}",
            f"{most['wait'] / 60:.2%}",
        )
        rows[name] = most
    Console(width=130).print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
