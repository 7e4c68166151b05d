"""What encoding in micro-batches costs and saves: a step of the service's smallest CLIP, whole and in chunks.

    python -m benchmarks.micro_batch [--batches 512 2048 8192 16384] [--micro 64] [--threads N]

A vision and a text transformer (configs/emoji/clip_small.yaml) with the unified loss, forward and backward, on one rank
without Ray. Every figure comes from a process of its own, one after the other: the median of a few steps after one
warm-up, and the highest resident memory beyond what the process held with model and inputs made; of the second pass,
which encodes with a graph, beyond what was held when it began: the encoder's own. Above --whole pairs (39 GB at 16,384)
only micro-batches are measured. Run it on a quiet machine.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from allpairs.models import build
from allpairs.objectives import make
from benchmarks.loss_cpu import memory
from distributed.cached import CachedStep, chunks_of
from distributed.config import load
from distributed.step import Pairs, TrainStep

ROOT = Path(__file__).resolve().parent.parent
WORDS, LENGTH = 4000, 16


def measure(batch: int, micro: int, threads: int) -> dict[str, float]:
    """Return seconds, bytes and loss of a step in this process; `micro` 0 is the whole batch at once."""
    torch.set_num_threads(threads)
    config = load(ROOT / "configs/emoji/clip_small.yaml")
    torch.manual_seed(0)
    side = config.model.config["vision_config"]["image_size"]
    step = TrainStep(build(config.model, WORDS).train(), make("unified", margin=0.2, scale=20), None, "fp32")
    ids = torch.arange(batch)
    lengths = torch.full((batch,), LENGTH)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    pairs = Pairs(images, torch.randint(1, WORDS, (batch, LENGTH)), lengths, ids, ids)
    cached = CachedStep(step) if micro else None

    encoder: list[float] = []
    highest: list[float] = []

    def run(some: Pairs) -> float:
        step.zero_grad(set_to_none=True)
        if cached is None:
            output = step(some)
            output.loss.backward()
        else:
            output = cached.encode(some, chunks_of(len(some.image_ids_b), 1, micro))
            held = 0
            for number, chunk in enumerate(cached.chunks(output.loss)):
                if number == 0:  # the embeddings have their gradients: what comes now is the encoders'
                    highest.append(memory("VmHWM"))
                    held = held_now()
                step(chunk).backward()
            encoder.append(memory("VmHWM") - held)
        return float(output.loss.detach())

    run(pairs.of_rows(slice(0, 32), slice(0, 32)))
    before = held_now()
    highest.clear()
    seconds: list[float] = []
    value = 0.0
    while len(seconds) < 3 and (len(seconds) < 1 or sum(seconds) < 30):
        started = time.perf_counter()
        value = run(pairs)
        seconds.append(time.perf_counter() - started)
    highest.append(memory("VmHWM"))
    found = {"seconds": statistics.median(seconds), "bytes": max(highest) - before, "value": value}
    return found | ({"encoder": statistics.median(encoder[1:])} if micro else {})


def held_now() -> int:
    """Return the bytes that are resident; the peak (VmHWM) starts again from here."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken next
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def in_a_process(batch: int, micro: int, threads: int) -> dict[str, float]:
    """Return what `measure` finds."""
    words = ["--measure", "--batches", str(batch), "--micro", str(micro), "--threads", str(threads)]
    command = [sys.executable, "-m", "benchmarks.micro_batch", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{batch} in {micro or 'one'} failed:\n{result.stderr}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of encoding in micro-batches.")
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 2048, 8192, 16384])
    parser.add_argument("--whole", type=int, default=8192, help="largest batch that is also encoded at once")
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.batches[0], given.micro, given.threads)))
        return
    title = f"a step of the small CLIP, {given.threads} threads; ratios to the whole batch at once"
    table = Table("B", "encoded", "seconds", "time", "extra MiB", "memory", "encoder MiB", "loss", title=title)
    for batch in given.batches:
        whole = None
        for micro in (0, given.micro) if batch <= given.whole else (given.micro,):
            found = in_a_process(batch, micro, given.threads)
            print(f"{batch} {micro} {found}", file=sys.stderr)
            whole = found if micro == 0 else whole
            ratios = ["–" if whole is None else f"{found[key] / whole[key]:.2f}" for key in ("seconds", "bytes")]
            encoder = f"{found['encoder'] / 2**20:,.0f}" if micro else "–"
            megabytes = f"{found['bytes'] / 2**20:,.0f}"
            name = f"in chunks of {micro}" if micro else "at once"
            times, value = f"{found['seconds']:.2f}", f"{found['value']:.6f}"
            table.add_row(str(batch), name, times, ratios[0], megabytes, ratios[1], encoder, value)
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
