"""What a step of a loss costs across ranks: operations, bytes and the memory that is held, from formulas alone.

    python -m benchmarks.cost [--ranks 64 --batch 4096 --dim 768 --dtype bfloat16 --bandwidth 45 --tflops 550]

Without arguments: 8 GPUs joined by NVLink and 64 GPUs with a network card of 400 Gbit/s each. `--batch` is one rank's
pairs, `--bandwidth` what collectives move into and out of a GPU at once, in GB/s, `--tflops` what products reach. The
bytes are those of `allpairs.engine`, which a test counts on gloo; times are quotients, without latencies.

Of an objective that weighs all pairs a rank sends, as a ring does, every row it needs of the others' once: (N − 1)·b·D
numbers of embeddings in forward, which travel while it compares its own rows with each other, and as many sums in
float32 in backward, in chunks, each under the products of the next. Of one that looks at the hardest negative it sends
only the sums of rows that its own queries have touched.
"""

import argparse
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from allpairs.engine.chunks import chunks

_SUM = 4
"""Bytes of a number in a sum, of embeddings in float32 or half precision."""
_INDEX = 8
FORWARD_TILE = 32_768
"""Queries whose row of tiles is looked at first."""


class Job(NamedTuple):
    """Equal parts of one batch on N ranks."""

    ranks: int
    batch: int
    """b: pairs of one rank."""
    dim: int
    element: int
    """Bytes of a number of an embedding."""

    @property
    def pairs(self) -> int:
        """B: pairs of all ranks."""
        return self.ranks * self.batch

    @property
    def chunks(self) -> list[int]:
        """How many candidates of every rank have their gradients exchanged at once."""
        return [chunk.length for chunk in chunks([self.batch] * self.ranks)]


def gather_bytes(job: Job) -> int:
    """Return what a rank sends so that all have the candidates of all."""
    return (job.ranks - 1) * job.batch * job.dim * job.element


def scatter_bytes(job: Job) -> int:
    """Return what a rank sends so that the gradients of all candidates are summed onto their owners."""
    return (job.ranks - 1) * sum(job.chunks) * job.dim * _SUM


def touched_bytes(job: Job, rows: int) -> int:
    """Return what a rank sends of an objective on the hardest negative, whose queries touch so many foreign rows."""
    return rows * (job.dim * _SUM + _INDEX)


def most_touched(job: Job) -> int:
    """Return how many foreign candidates a rank's queries touch at most, in the mean over the ranks.

    Each query looks at one candidate, and each candidate at one query.
    """
    return 0 if job.ranks == 1 else 2 * job.batch


def held_bytes(job: Job, tile: int) -> int:
    """Return the most that backward holds beside the inputs, where all pairs have a weight; W takes `tile`² numbers.

    All candidates; the gradients of this rank's own rows, and the sums of its queries'; one chunk at work and one on
    its way, with the rows of it that arrive.
    """
    own = job.batch * job.dim
    gathered = job.pairs * job.dim * job.element if job.ranks > 1 else 0
    longest, several = max(job.chunks), len(job.chunks) > 1
    buffers = (2 if several else 1) * job.ranks * longest * job.dim * _SUM
    arriving = longest * job.dim * _SUM if job.ranks > 1 else 0
    sums = (own if several else min(tile, job.batch) * job.dim) * _SUM
    return gathered + 2 * own * job.element + sums + buffers + arriving + tile**2 * job.element


class Cost(NamedTuple):
    """Of one forward and backward on each rank, in milliseconds."""

    products: float
    gather: float
    scatter: float
    hidden: float
    """How much of both runs under products."""

    @property
    def total(self) -> float:
        """The whole step."""
        return self.products + self.gather + self.scatter - self.hidden


def own_product(job: Job, tflops: float) -> float:
    """Return the milliseconds that a rank is busy with its own candidates before it needs others'."""
    return 2 * min(job.batch, FORWARD_TILE) * job.batch * job.dim / tflops / 1e9


def dense_cost(job: Job, bandwidth: float, tflops: float) -> Cost:
    """Return the cost where all pairs have a weight: four products of 2·B²·D in all, three of them in backward.

    `bandwidth` in GB/s.
    """
    products = 8 * job.pairs**2 * job.dim / job.ranks / tflops / 1e9
    scatter = scatter_bytes(job) / bandwidth / 1e6
    number = len(job.chunks)
    # The first chunk has nothing to hide, and nothing hides the last.
    hidden = (number - 1) / number * min(scatter, products * 3 / 4)
    gather = gather_bytes(job) / bandwidth / 1e6
    return Cost(products, gather, scatter, hidden + min(gather, own_product(job, tflops)))


def hardest_cost(job: Job, bandwidth: float, tflops: float) -> Cost:
    """Return the cost where only hardest negatives have a weight: one product of 2·B²·D in all."""
    products = 2 * job.pairs**2 * job.dim / job.ranks / tflops / 1e9
    scatter = touched_bytes(job, most_touched(job)) / bandwidth / 1e6
    gather = gather_bytes(job) / bandwidth / 1e6
    return Cost(products, gather, scatter, min(gather, own_product(job, tflops)))


MACHINES = [
    ("8 × H200, NVLink", 8, (8192, 32768, 131072), 360.0),
    ("64 GPUs, 400 Gbit/s each", 64, (1024, 4096, 65536), 45.0),
]
"""Title, ranks, pairs of a rank and GB/s."""


def table(title: str, jobs: list[Job], bandwidth: float, tflops: float, tile: int) -> Table:
    """Return the costs of these jobs."""
    heads = ("b", "B", "objective", "products ms", "gather ms", "scatter ms", "hidden ms", "total ms", "held MB")
    shown = Table(*heads, title=f"{title}: {bandwidth:g} GB/s, {tflops:g} TFLOP/s")
    for job in jobs:
        for name, cost in (
            ("all pairs", dense_cost(job, bandwidth, tflops)),
            ("hardest", hardest_cost(job, bandwidth, tflops)),
        ):
            held = f"{held_bytes(job, tile) / 1e6:,.0f}" if name == "all pairs" else ""
            times = (f"{value:,.2f}" for value in (*cost, cost.total))
            shown.add_row(f"{job.batch:,}", f"{job.pairs:,}", name, *times, held)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what a step of a loss costs across ranks.")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--batch", type=int, default=4096, help="pairs of one rank")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--bandwidth", type=float, default=45.0, help="GB/s into and out of a GPU")
    parser.add_argument("--tflops", type=float, default=550.0)
    parser.add_argument("--tile", type=int, default=5632, help="rows and columns of W")
    given = parser.parse_args()
    if min(given.ranks or 1, given.batch, given.dim, given.tile, given.bandwidth, given.tflops) <= 0:
        parser.error("all numbers must be above 0")
    machines = MACHINES
    if given.ranks is not None:
        machines = [(f"{given.ranks} ranks", given.ranks, (given.batch,), given.bandwidth)]
    element = getattr(torch, given.dtype).itemsize
    for title, ranks, batches, bandwidth in machines:
        jobs = [Job(ranks, batch, given.dim, element) for batch in batches]
        shown = table(f"{title}, D={given.dim}, {given.dtype}", jobs, bandwidth, given.tflops, given.tile)
        Console(width=120).print(shown)


if __name__ == "__main__":
    main()
