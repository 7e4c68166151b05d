"""vlc at 65,536 pairs: time, memory, and what the GPU is busy with."""

from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.losses import SCALE, ours, softmax_work, step, vectors

SECTION = "vlc"
SHOWN = 12
"""Kernels of the profile, the busiest first."""


def run(bench: Bench) -> None:
    """Measure both ways to hand over rows, and profile the default one."""
    batch, dim = bench.sizes.batch, bench.sizes.dim
    sides = vectors(batch, dim, bench.device, bench.dtype)
    work = softmax_work(batch, dim)
    for normalize in (True, False):
        loss = ours("vlc", scale=SCALE, normalize=normalize)
        bench.timed(SECTION, f"{batch:,} pairs, normalize={normalize}", 40, step(loss, sides), work)
    call = step(ours("vlc", scale=SCALE), sides)
    if bench.device != "cuda":
        bench.record.skipped(SECTION, "profile", "there is no GPU")
        return
    for name, busy in _profile(bench, call):
        bench.record.measured(f"{SECTION}: busy time", name, **busy)


def _profile(bench: Bench, call: Any) -> list[tuple[str, dict[str, Any]]]:
    from torch.profiler import ProfilerActivity, profile

    try:
        call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            call()
            torch.cuda.synchronize()
        events = [event for event in found.key_averages() if event.self_device_time_total > 0]
    except Exception as error:
        bench.record.lost(SECTION, "profile", error)
        return []
    total = sum(event.self_device_time_total for event in events) / 1e3
    events.sort(key=lambda event: -event.self_device_time_total)
    rows = [
        (event.key[:60], {"ms": event.self_device_time_total / 1e3, "launches": event.count})
        for event in events[:SHOWN]
    ]
    return [("all kernels", {"ms": total, "launches": sum(event.count for event in events)}), *rows]
