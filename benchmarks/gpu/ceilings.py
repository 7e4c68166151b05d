"""What this GPU does at best: a large product and a large copy, from rest and kept up."""

import time

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.timing import clocks

SECTION = "ceilings"
SUSTAINED = 5.0
"""Seconds, after which the clock has settled."""


def run(bench: Bench) -> None:
    """Measure products of the engine's own types, summed in float32, and copies."""
    n, device = bench.sizes.product, bench.device
    left, right = (torch.randn(n, n, device=device).to(bench.dtype) for _ in range(2))
    work = 2.0 * n**3

    def product() -> None:
        torch.mm(left, right)

    bench.timed(SECTION, f"product {n}³, burst", 5, product, work)
    source, target = torch.empty(2, 8 * n, n, dtype=bench.dtype, device=device)

    def copy() -> None:
        target.copy_(source)

    found = bench.timed(SECTION, f"copy of {source.nbytes / 1e6:.0f} MB", 5, copy)
    if found is not None:
        bench.record.measured(SECTION, "copy, read and written", **{"GB/s": 2 * source.nbytes / found["ms"] / 1e6})

    def sustained() -> dict[str, float]:
        seconds = SUSTAINED if device == "cuda" else 0.0
        started, products = time.perf_counter(), 0
        while products == 0 or time.perf_counter() - started < seconds:
            for _ in range(20):
                product()
            products += 20
            if device == "cuda":
                torch.cuda.synchronize()
        spent = time.perf_counter() - started
        return {"ms": spent * 1e3 / products, "TFLOP/s": work * products / spent / 1e12, **clocks(device)}

    bench.row(SECTION, f"product {n}³, sustained", SUSTAINED + 1, sustained)
