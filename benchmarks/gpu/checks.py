"""Whether the kernels are right on this machine, before anything is timed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from allpairs.objectives import make, names
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.losses import vectors

SECTION = "kernel tests"
ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/allpairs/engine/fused/test_launches.py", "tests/allpairs/engine/fused/test_triton_backend.py")
PAIRS, DIM = (1, 37, 1000), 40
"""Ragged, and no multiple of 16."""


def run(bench: Bench) -> None:
    """Compare each objective that has kernels with the dense backend in float64, and run the tests where pytest is."""
    if not bench.fused:
        bench.record.skipped(SECTION, "all", "no GPU, and Triton's interpreter is off")
        return
    for name in names():
        if make(name).kernel is not None:
            bench.row(SECTION, name, 10, lambda name=name: compared(bench, name))
    if importlib.util.find_spec("pytest") is None:
        bench.record.skipped(SECTION, "pytest", "it is not installed")
    elif bench.device == "cuda":
        bench.row(SECTION, "pytest", 90, lambda: tests(bench))


def compared(bench: Bench, name: str) -> dict[str, Any]:
    """Return the largest relative errors of value and gradients over sizes and types, with ids and without."""
    largest = {"value": 0.0, "gradient, half": 0.0, "gradient, float32": 0.0}
    for pairs in PAIRS if bench.device == "cuda" else PAIRS[:2]:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            ids = torch.arange(pairs, device=bench.device) // 3 if pairs > 3 else None
            sides = [side.detach().requires_grad_() for side in vectors(pairs, DIM, bench.device, dtype)]
            wide = [side.detach().double().requires_grad_() for side in sides]
            objective = make(name, normalize=False)
            loss, expected = objective(*sides, query_ids=ids, backend="triton"), objective(*wide, query_ids=ids)
            scale = max(abs(expected.item()), 1e-6)
            largest["value"] = max(largest["value"], abs(loss.item() - expected.item()) / scale)
            kind = "gradient, float32" if dtype == torch.float32 else "gradient, half"
            for one, other in zip(torch.autograd.grad(loss, sides), torch.autograd.grad(expected, wide), strict=True):
                error = float((one.double() - other).norm() / (other.norm() + 1e-6))
                largest[kind] = max(largest[kind], error)
    return largest


def tests(bench: Bench) -> dict[str, Any]:
    """Run the tests of the kernels and return what pytest says last."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--noconftest", *TESTS]
    command += ["-k", "not three_ranks"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=max(bench.left, 1), env=os.environ
    )
    said = (result.stdout or result.stderr).strip().splitlines()
    if result.returncode:
        raise RuntimeError(next((line for line in said if line.startswith(("FAILED", "ERROR", "E  "))), said[-1]))
    return {"result": said[-1]}
