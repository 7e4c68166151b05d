"""Every objective at 65,536 pairs, with its defaults."""

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.losses import every_objective, step, vectors

SECTION = "every objective"


def run(bench: Bench) -> None:
    """Measure each."""
    batch = bench.sizes.batch
    sides = vectors(batch, bench.sizes.dim, bench.device, bench.dtype)
    for name, loss in every_objective().items():
        bench.timed(f"{SECTION}, {batch:,} pairs", name, 12, step(loss, sides))
