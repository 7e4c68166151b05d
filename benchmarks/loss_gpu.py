"""Time and memory of one loss, forward and backward, on one GPU: ours beside open_clip and siglip-kernel.

    python -m benchmarks.loss_gpu [--batches 65536 ...] [--dim 768] [--only NAME ...]

Needs torch, Triton and a CUDA GPU; exits with 2 where there is none. open_clip's ClipLoss is the installed one, or else
written out here; siglip-kernel is shown where it is installed. Inputs are bfloat16 unit vectors (ours then run with
`normalize=False`) and both sides get gradients. Times are medians between CUDA events after one full warm-up.

Operations are counted as the least the loss can do, whatever was done: four products of 2·B²·D for softmax over both
directions (scores forward, scores again, two gradients), three for siglip-kernel's sigmoid loss, which keeps nothing
either, and one per walk over the scores for objectives of hardest negatives, whose gradients are sparse. "of GEMM" is
that rate over the one of a large bfloat16 product measured here first. Memory is the allocator's: "extra" is the peak
beyond the inputs and counts the gradients of the inputs, "total" the whole peak.

To be held at B = 65,536, D = 768 on a Hopper GPU by "allpairs vlc, triton": 48.8 ms and 640 MB extra.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from allpairs.objectives import make
from benchmarks import clip_loss

BATCHES = tuple(1 << power for power in range(13, 21))
SCALE = 100.0
LARGEST_PLAIN = 32768
"""The largest batch of "tiled", which multiplies in float32."""
GEMM = 8192

Loss = Callable[[Tensor, Tensor], Tensor]


class Contender(NamedTuple):
    """A loss, and how its work is counted."""

    name: str
    loss: Loss
    products: int
    """Of 2·B²·D operations."""
    largest: int | None = None
    """The largest batch it is run at."""


class Measured(NamedTuple):
    """What one forward and backward takes."""

    forward_ms: float
    total_ms: float
    extra_bytes: int
    peak_bytes: int
    value: float


def ours(name: str, backend: str, *, largest: int | None = None, **arguments: float) -> Contender:
    objective = make(name, **arguments, normalize=False)
    products = 4 if name == "vlc" else objective.passes

    def loss(queries: Tensor, candidates: Tensor) -> Tensor:
        return objective(queries, candidates, backend=backend)

    return Contender(f"allpairs {name}, {backend}", loss, products, largest)


def open_clip() -> Contender:
    if importlib.util.find_spec("open_clip") is not None:
        installed = clip_loss.load()()
        return Contender("ClipLoss of open_clip", lambda queries, candidates: installed(queries, candidates, SCALE), 4)

    def loss(queries: Tensor, candidates: Tensor) -> Tensor:
        labels = torch.arange(len(queries), device=queries.device)
        of_queries = F.cross_entropy(SCALE * queries @ candidates.T, labels)
        return (of_queries + F.cross_entropy(SCALE * candidates @ queries.T, labels)) / 2

    return Contender("ClipLoss, written out", loss, 4)


def siglip_kernel() -> list[Contender]:
    if importlib.util.find_spec("siglip_kernel") is None:
        return []
    from siglip_kernel import fused_siglip_loss

    log_scale, bias = (torch.tensor(value, device="cuda", requires_grad=True) for value in (2.302, -10.0))
    return [
        Contender(
            "siglip-kernel", lambda queries, candidates: fused_siglip_loss(queries, candidates, log_scale, bias), 3
        )
    ]


def contenders() -> list[Contender]:
    return [
        ours("vlc", "triton", scale=SCALE),
        ours("vlc", "tiled", largest=LARGEST_PLAIN, scale=SCALE),
        ours("triplet_hn", "triton"),
        ours("goal", "triton"),
        open_clip(),
        *siglip_kernel(),
    ]


def unit_vectors(batch: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return matched pairs, as far along in training as a cosine of about 0.45 is."""
    torch.manual_seed(0)
    queries = F.normalize(torch.randn(batch, dim, device="cuda", dtype=torch.bfloat16), dim=1)
    noise = F.normalize(torch.randn(batch, dim, device="cuda", dtype=torch.bfloat16), dim=1)
    candidates = F.normalize(queries + 2 * noise, dim=1)
    return queries.requires_grad_(), candidates.requires_grad_()


def gemm_rate() -> float:
    """Return the operations per second of a large bfloat16 product of random numbers."""
    left, right = (torch.randn(GEMM, GEMM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    for _ in range(10):
        torch.mm(left, right, out=product)
    milliseconds = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(left, right, out=product)
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return 2 * GEMM**3 / (statistics.median(milliseconds) / 1e3)


def once(loss: Loss, queries: Tensor, candidates: Tensor) -> tuple[float, float, float]:
    """Return the milliseconds of forward and of both, and the loss."""
    queries.grad = candidates.grad = None
    start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    torch.cuda.synchronize()
    start.record()
    value = loss(queries, candidates)
    middle.record()
    value.backward()
    end.record()
    end.synchronize()
    return start.elapsed_time(middle), start.elapsed_time(end), value.item()


def measure(loss: Loss, batch: int, dim: int) -> Measured | None:
    """Return the medians of up to ten runs within ten seconds, or None where memory does not suffice."""
    try:
        small = unit_vectors(256, dim)
        once(loss, *small)  # what cuBLAS and others hold for good is no part of the loss's memory
        del small
        queries, candidates = unit_vectors(batch, dim)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        runs = [once(loss, queries, candidates)]  # compiles for this size, and is not counted
        while len(runs) < 2 or (len(runs) <= 10 and time.perf_counter() - started < 10):
            runs.append(once(loss, queries, candidates))
        peak = torch.cuda.max_memory_allocated()
    except torch.cuda.OutOfMemoryError:
        return None
    forward_ms, total_ms, value = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    return Measured(forward_ms, total_ms, peak - before, peak, value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time losses on a GPU.")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders whose name contains one of these")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("loss_gpu: no CUDA GPU is visible to torch; on a CPU run benchmarks.loss_cpu", file=sys.stderr)
        sys.exit(2)
    if importlib.util.find_spec("triton") is None:
        print("loss_gpu: the package triton is not installed", file=sys.stderr)
        sys.exit(2)
    import triton

    gemm = gemm_rate()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; bfloat16, "
        f"D={given.dim}; a product of {GEMM}³ runs at {gemm / 1e12:.0f} TFLOP/s"
    )
    widths = (9, 24, 12, 12, 11, 9, 8, 10, 10, 10)
    heads = ("B", "loss", "forward ms", "total ms", "counted", "TFLOP/s", "of GEMM", "extra MB", "total MB", "value")
    print("  ".join(head.rjust(width) for head, width in zip(heads, widths, strict=True)), flush=True)
    chosen = [c for c in contenders() if given.only is None or any(part in c.name for part in given.only)]
    for batch in given.batches:
        for name, loss, products, largest in chosen:
            if largest is not None and batch > largest:
                continue
            found = measure(loss, batch, given.dim)
            torch.cuda.empty_cache()
            if found is None:
                cells = [f"{batch:,}", name, "out of memory"]
            else:
                rate = 2 * products * batch**2 * given.dim / (found.total_ms / 1e3)
                cells = [f"{batch:,}", name, f"{found.forward_ms:.2f}", f"{found.total_ms:.2f}"]
                cells += [f"{2 * products}·B²·D", f"{rate / 1e12:.0f}", f"{rate / gemm:.0%}"]
                cells += [f"{found.extra_bytes / 1e6:,.0f}", f"{found.peak_bytes / 1e6:,.0f}", f"{found.value:.4f}"]
            print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=False)), flush=True)


if __name__ == "__main__":
    main()
