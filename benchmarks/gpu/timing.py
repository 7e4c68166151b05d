"""Medians, their spread, memory and clocks, of anything that can be called."""

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]


def measure(call: Call, device: str, *, seconds: float, most: int) -> dict[str, float | int]:
    """Return the median milliseconds of up to `most` calls within `seconds`, lowest, highest and extra MB.

    After one call that is not counted, in which kernels are compiled. Memory, beyond what was held before, is the
    allocator's; on a CPU there is none.
    """
    call()
    held = 0
    if device == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    milliseconds: list[float] = []
    started = time.perf_counter()
    while len(milliseconds) < most and (len(milliseconds) < 2 or time.perf_counter() - started < seconds):
        milliseconds.append(_once(call, device))
    found: dict[str, float | int] = {
        "ms": statistics.median(milliseconds),
        "lowest": min(milliseconds),
        "highest": max(milliseconds),
        "runs": len(milliseconds),
    }
    if device == "cuda":
        found["extra MB"] = (torch.cuda.max_memory_allocated() - held) / 1e6
    return found | clocks(device)


def clocks(device: str) -> dict[str, int]:
    """Return the clock in MHz, the power in W and the temperature in °C of the GPU, where it says so."""
    if device != "cuda":
        return {}
    asked = [
        "nvidia-smi",
        "--id=0",
        "--query-gpu=clocks.sm,power.draw,temperature.gpu",
        "--format=csv,noheader,nounits",
    ]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.split(",")
        return {name: round(float(value)) for name, value in zip(("MHz", "W", "°C"), told, strict=True)}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def _once(call: Call, device: str) -> float:
    if device != "cuda":
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
