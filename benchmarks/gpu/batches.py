"""vlc over batches: the time is to grow with B², the memory with B."""

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.losses import SCALE, ours, softmax_work, step, vectors

SECTION = "vlc over batches"


def run(bench: Bench) -> None:
    """Measure all batches but the largest."""
    for batch in bench.sizes.batches:
        _one(bench, batch)


def run_largest(bench: Bench) -> None:
    """Measure the largest batch."""
    _one(bench, bench.sizes.largest)


def _one(bench: Bench, batch: int) -> None:
    seconds = 4 + 0.2 * (batch / 65536) ** 2
    if bench.left < seconds:  # before its embeddings are made
        bench.record.skipped(SECTION, f"{batch:,} pairs", f"would take about {seconds:.0f} s")
        return
    sides = vectors(batch, bench.sizes.dim, bench.device, bench.dtype)
    loss = step(ours("vlc", scale=SCALE), sides)
    bench.timed(SECTION, f"{batch:,} pairs", seconds, loss, softmax_work(batch, bench.sizes.dim))
