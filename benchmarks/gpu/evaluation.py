"""Exact evaluation of a million queries against a million items, and FAISS's search over the same."""

import importlib.util
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench

SECTION = "evaluation"
R1 = "R@1, mean of both, %"
K = 10
ASKED = 65536
"""Queries that FAISS is asked at once."""


def run(bench: Bench) -> None:
    """Measure both; one product serves both directions of ours, FAISS searches twice."""
    items, dim = bench.sizes.largest, bench.sizes.eval_dim
    size = f"{items:,} × {items:,}, D = {dim}"
    about = 5 + 30 * (items / 1e6) ** 2
    bench.row(SECTION, f"retrieval_eval, exact, {size}", about, lambda: exact(bench, items, dim))
    name = f"FAISS flat, top {K} both ways, {size}"
    if importlib.util.find_spec("faiss") is None:
        bench.record.skipped(SECTION, name, "faiss is not installed")
        return
    bench.row(SECTION, name, 2 * about, lambda: faiss_flat(bench, items, dim))


def data(items: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Return queries and their gallery item each, unit vectors in float32."""
    generator = torch.Generator(device).manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(items, dim, device=device, generator=generator))
    gallery = torch.randn(items, dim, device=device, generator=generator).add_(queries, alpha=4.0)
    return queries, gallery.div_(torch.linalg.vector_norm(gallery, dim=1, keepdim=True))


def exact(bench: Bench, items: int, dim: int) -> dict[str, Any]:
    """Time all metrics of both directions, in true float32."""
    from retrieval_eval import evaluate

    queries, gallery = data(items, dim, bench.device)
    ids = np.arange(items)
    few = min(items, 8192)
    evaluate(queries[:few], gallery[:few], ids[:few], ids[:few])
    held = 0
    if bench.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    started = time.perf_counter()
    report = evaluate(queries, gallery, ids, ids)
    seconds = time.perf_counter() - started
    found = {"s": seconds, "TFLOP/s": 2.0 * items * items * dim / seconds / 1e12}
    found |= {R1: (report.metrics["i2t/r1"] + report.metrics["t2i/r1"]) / 2, "RSUM": report.metrics["rsum"]}
    if bench.device == "cuda":
        found["extra MB"] = (torch.cuda.max_memory_allocated() - held) / 1e6
    return found


def faiss_flat(bench: Bench, items: int, dim: int) -> dict[str, Any]:
    """Time the search of both directions, on the GPU where this FAISS has one, and the recall at 1 it finds."""
    import faiss

    sides = [side.cpu().numpy() for side in data(items, dim, bench.device)]
    on_gpu = bench.device == "cuda" and hasattr(faiss, "index_cpu_to_all_gpus")
    right, seconds = 0.0, 0.0
    for asking, answering in (sides, sides[::-1]):
        index = faiss.IndexFlatIP(dim)
        if on_gpu:
            index = faiss.index_cpu_to_all_gpus(index)
        started = time.perf_counter()
        index.add(answering)
        for start in range(0, items, ASKED):
            _, found = index.search(asking[start : start + ASKED], K)
            right += float((found[:, 0] == np.arange(start, start + len(found))).sum())
        seconds += time.perf_counter() - started
    return {"s": seconds, "on": "GPU" if on_gpu else "CPU", R1: 50 * right / items}
