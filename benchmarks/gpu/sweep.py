"""vlc at 65,536 pairs over tile sizes and launches of the kernels, one thing changed at a time."""

from contextlib import AbstractContextManager
from typing import Any

from allpairs.engine.backend import tiling
from allpairs.engine.fused.launch_table import TABLE, Launch, launching
from allpairs.engine.tiled import TileSizes
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.losses import SCALE, ours, softmax_work, step, vectors

SECTION = "sweep of vlc"
FORWARD = (8192, 16384, 65536)
BACKWARD = (4096, 8192, 11264, 16384)
"""Beside what is chosen: a product with 768 columns fills 132 multiprocessors at 5,632 rows, and twice at 11,264."""
LAUNCHES = {
    "soft_excess": (
        Launch(128, 256, 64, warps=8, stages=4),
        Launch(128, 128, 64, warps=4, stages=3),
        Launch(64, 128, 64, warps=4, stages=4),
        Launch(256, 128, 64, warps=8, stages=3),
        TABLE["soft_excess"]._replace(group=16),
    ),
    "soft_weights": (
        Launch(256, 128, 64, warps=8, stages=4),
        Launch(64, 128, 64, warps=4, stages=4),
        Launch(128, 256, 64, warps=8, stages=3),
        TABLE["soft_weights"]._replace(group=16),
    ),
}


def variants() -> dict[str, AbstractContextManager[Any]]:
    """Return what is tried, by name.

    What of it spills does so with masks alone, on the diagonal: soft_excess at 128 × 256 (124 bytes), soft_weights at
    256 × 128 (216).
    """
    chosen = TileSizes(32768, 5632)
    tried: dict[str, AbstractContextManager[Any]] = {"as chosen": launching()}
    tried |= {f"forward tile {size:,}": tiling(chosen._replace(forward=size)) for size in FORWARD}
    tried |= {f"backward tile {size:,}": tiling(chosen._replace(backward=size)) for size in BACKWARD}
    for kernel, launches in LAUNCHES.items():
        for launch in launches:
            shape = f"{launch.rows}×{launch.columns}×{launch.depth}"
            name = f"{kernel} {shape}, {launch.warps} warps, {launch.stages} stages, group {launch.group}"
            tried[name] = launching(**{kernel: launch})
    return tried


def run(bench: Bench) -> None:
    """Measure each variant."""
    if not bench.fused or bench.device != "cuda":
        bench.record.skipped(SECTION, "all variants", "there is no GPU")
        return
    batch, dim = bench.sizes.batch, bench.sizes.dim
    sides = vectors(batch, dim, bench.device, bench.dtype)
    for name, variant in variants().items():
        with variant:
            bench.timed(SECTION, name, 12, step(ours("vlc", scale=SCALE), sides), softmax_work(batch, dim))
