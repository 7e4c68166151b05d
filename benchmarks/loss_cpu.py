"""Time and memory of a loss, forward and backward, on a CPU: beside open_clip, pytorch-metric-learning and plain code.

    python -m benchmarks.loss_cpu [--batches 2048 4096 ...] [--dim 512] [--threads N]

Every figure comes from a process of its own, one after the other: the median of a few repetitions after one warm-up,
and the highest resident memory beyond what the process held with its inputs made. Inputs are unit vectors, so that
everyone computes the same; gradients flow to both sides. A process that would need more memory than the machine has is
refused its allocation and shown as such. Run it on a quiet machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import clip_loss

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (2048, 4096, 8192, 16384, 32768)
SCALE = 100.0
MARGIN = 0.2
BASE = "open_clip ClipLoss"


def ours(name: str, backend: str, **arguments: object) -> Callable[[Tensor, Tensor], Tensor]:
    from allpairs.objectives import make

    objective = make(name, **arguments, normalize=False)
    return lambda queries, candidates: objective(queries, candidates, backend=backend)


def open_clip() -> Callable[[Tensor, Tensor], Tensor]:
    loss = clip_loss.load()()
    return lambda queries, candidates: loss(queries, candidates, SCALE)


def metric_learning() -> Callable[[Tensor, Tensor], Tensor]:
    from pytorch_metric_learning.losses import NTXentLoss

    loss = NTXentLoss(temperature=1 / SCALE)

    def both(queries: Tensor, candidates: Tensor) -> Tensor:
        # Two tensors: of one and the same it makes a batch against itself, without any positive.
        labels, ref_labels = torch.arange(len(queries)), torch.arange(len(queries))
        of_queries = loss(queries, labels, ref_emb=candidates, ref_labels=ref_labels)
        return of_queries + loss(candidates, labels, ref_emb=queries, ref_labels=ref_labels)

    return both


def plain_triplet() -> Callable[[Tensor, Tensor], Tensor]:
    """VSE++'s sum of hinges, as its users write it."""

    def loss(queries: Tensor, candidates: Tensor) -> Tensor:
        scores = queries @ candidates.T
        positives = scores.diagonal()
        own = torch.eye(len(scores), dtype=torch.bool)
        rows = (MARGIN + scores - positives[:, None]).clamp(min=0).masked_fill(own, 0)
        columns = (MARGIN + scores - positives).clamp(min=0).masked_fill(own, 0)
        return (rows.sum() + columns.sum()) / len(scores)

    return loss


LOSSES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    BASE: open_clip,
    "pytorch-metric-learning NTXentLoss": metric_learning,
    "allpairs vlc, dense": lambda: ours("vlc", "dense", scale=SCALE),
    "allpairs vlc, tiled": lambda: ours("vlc", "tiled", scale=SCALE),
    "plain triplet": plain_triplet,
    "allpairs triplet, tiled": lambda: ours("triplet", "tiled", margin=MARGIN),
    "allpairs triplet_hn, tiled": lambda: ours("triplet_hn", "tiled", margin=MARGIN),
    "allpairs unified, tiled": lambda: ours("unified", "tiled", margin=MARGIN, scale=60.0),
}


def memory(field: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(name: str, batch: int, dim: int, threads: int) -> dict[str, float]:
    """Return seconds, bytes and the value of one loss in this process, which does nothing else."""
    torch.set_num_threads(threads)
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    held = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (held + int(0.9 * available), resource.RLIM_INFINITY))
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(batch, dim, generator=generator)
    candidates = torch.nn.functional.normalize(queries + 8 * torch.randn(batch, dim, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(queries, dim=1).requires_grad_()
    candidates.requires_grad_()
    loss = LOSSES[name]()

    small = [x[:64].detach().requires_grad_() for x in (queries, candidates)]
    loss(*small).backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    seconds: list[float] = []
    value = 0.0
    while len(seconds) < 5 and (len(seconds) < 2 or sum(seconds) < 10):
        queries.grad = candidates.grad = None
        started = time.perf_counter()
        result = loss(queries, candidates)
        result.backward()
        seconds.append(time.perf_counter() - started)
        value = result.item()
    return {"seconds": statistics.median(seconds), "bytes": memory("VmHWM") - before, "value": value}


def in_a_process(name: str, batch: int, dim: int, threads: int) -> dict[str, float] | None:
    """Return what `measure` finds, or None where memory did not suffice."""
    command = [sys.executable, "-m", "benchmarks.loss_cpu", "--measure", name]
    command += ["--batches", str(batch), "--dim", str(dim), "--threads", str(threads)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
        return found
    if "memory" in result.stderr:
        return None
    sys.exit(f"{name} at {batch} failed:\n{result.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time losses on a CPU.")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", default=list(LOSSES), choices=list(LOSSES), metavar="LOSS")
    parser.add_argument("--measure", choices=list(LOSSES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.batches[0], given.dim, given.threads)))
        return
    title = f"forward + backward, D={given.dim}, float32, {given.threads} threads; ratios to {BASE}"
    table = Table("B", "loss", "seconds", "time", "extra MiB", "memory", "value", title=title)
    for batch in given.batches:
        base: dict[str, float] | None = None
        for name in given.only:
            print(f"{batch} {name}", file=sys.stderr)
            found = in_a_process(name, batch, given.dim, given.threads)
            base = found if name == BASE else base
            if found is None:
                table.add_row(str(batch), name, "out of memory", "", "", "", "")
                continue
            ratios = ["", ""] if base is None else [f"{found[key] / base[key]:.2f}" for key in ("seconds", "bytes")]
            megabytes = f"{found['bytes'] / 2**20:,.0f}"
            table.add_row(
                *(str(batch), name, f"{found['seconds']:.3f}", ratios[0], megabytes, ratios[1], f"{found['value']:.4f}")
            )
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
