"""What it costs that ranks agree before they compute: a step with that message, and one that asks for counts alone.

    python -m benchmarks.agreement [--batch 4096] [--dim 512] [--ranks 2] [--steps 40]

Forward and backward of vlc on unit vectors, `--batch` pairs of all ranks, gloo on this machine, a thread a rank. Both
kinds of steps take turns in the same processes, and the order within a pair of them changes: a machine that is slow
for a while is slow for both. Shown are the medians, that of the differences of the pairs, and both exchanges alone.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from allpairs.engine import agreement, backend
from allpairs.engine.agreement import Agreement, Proposal
from allpairs.engine.batch import Ids, LocalBatch, nothing_or_nan
from allpairs.engine.exchange import RankLayout, all_gather
from allpairs.objectives import make


def counts_alone(
    prepared: Callable[[], LocalBatch], proposal: Callable[[LocalBatch], Proposal], group: "dist.ProcessGroup"
) -> Agreement:
    """Return what a call needs to know of the others, who are believed to do the same."""
    batch = prepared()
    ranks = dist.get_world_size(group)
    counts = torch.tensor([len(batch.queries), len(batch.candidates)])
    queries, candidates = all_gather(counts, ranks, group).T.tolist()
    layout = RankLayout(queries, candidates, dist.get_rank(group), group)
    return Agreement(batch, layout, nothing_or_nan(batch), [proposal(batch).choice] * ranks)


WAYS = {"counts alone": counts_alone, "agreement": agreement.agree}


def measure(rank: int, given: argparse.Namespace, folder: str) -> None:
    """Take the times of one rank, and on rank 0 print the table."""
    batch, dim, ranks, steps = given.batch, given.dim, given.ranks, given.steps
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    objective = make("vlc", scale=20, learn_scale=True, normalize=False)
    generator = torch.Generator().manual_seed(rank)
    leaves = [
        normalize(torch.randn(batch // ranks, dim, generator=generator), dim=1).requires_grad_() for _ in range(2)
    ]

    def step(way: str) -> float:
        with mock.patch.object(backend, "agree", WAYS[way]):
            dist.barrier()
            start = time.perf_counter()
            objective(*leaves, group=group).backward()
            return time.perf_counter() - start

    def exchange(way: str) -> float:
        own = LocalBatch(*(leaf.detach() for leaf in leaves), ids=Ids(None, None), margins=None)
        mine = Proposal(objective.settings(), {"the scale": objective.score_scale(), "the bias": 0.0})
        dist.barrier()
        start = time.perf_counter()
        WAYS[way](lambda: own, lambda _: mine, group)
        return time.perf_counter() - start

    taken: dict[Callable[[str], float], dict[str, list[float]]] = {}
    for what, repeats in ((step, steps), (exchange, 10 * steps)):
        taken[what] = {way: [] for way in WAYS}
        for number in range(repeats + 1):
            for way in sorted(WAYS, reverse=number % 2 == 1):
                seconds = what(way)
                if number:  # the first warms up
                    taken[what][way].append(seconds)
    if rank == 0:
        show(taken[step], taken[exchange], f"vlc, B = {batch:,} on {ranks} ranks, D = {dim}, float32")
    dist.destroy_process_group()


def show(steps: dict[str, list[float]], exchanges: dict[str, list[float]], title: str) -> None:
    """Print the table."""
    table = Table("", "counts alone", "agreement", "difference", "of a step", title=title)
    whole = statistics.median(steps["counts alone"])
    for name, times in (("a step", steps), ("the exchange alone", exchanges)):
        before, now = (statistics.median(times[way]) for way in WAYS)
        more = statistics.median(b - a for a, b in zip(*(times[way] for way in WAYS), strict=True))
        table.add_row(name, *(f"{1e3 * value:.3f} ms" for value in (before, now, more)), f"{more / whole:+.2%}")
    Console(width=110).print(table)


def main() -> None:
    """Measure in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("batch", 4096), ("dim", 512), ("ranks", 2), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    if given.ranks < 2 or min(given.dim, given.steps) < 1 or given.batch < given.ranks:
        parser.error("at least two ranks, a pair each and one step")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (given, folder), nprocs=given.ranks)


if __name__ == "__main__":
    main()
