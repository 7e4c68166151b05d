"""What a call sends to other ranks and what it holds, counted without any device's allocator."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allpairs.engine.exchange import Arriving
from allpairs.engine.tiled import PlainTiles
from allpairs.objectives import make
from benchmarks.cost import Job

LEAST_COLUMNS, TILE = 16, 16
DIM = 96


class Held(TorchDispatchMode):
    """Notes the most bytes that are held at once of the storages that operations make while it is on."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self._given = [StorageWeakRef(tensor.untyped_storage()) for tensor in given]  # keeps their keys taken
        self._sizes = {reference.cdata: 0 for reference in self._given}
        self._alive: list[tuple[StorageWeakRef, int]] = []
        self.most = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self._alive = [(reference, size) for reference, size in self._alive if not reference.expired()]
        known = self._sizes.keys() | {reference.cdata for reference, _ in self._alive}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (reference := StorageWeakRef(leaf.untyped_storage())).cdata not in known:
                self._alive.append((reference, leaf.untyped_storage().nbytes()))
                known = known | {reference.cdata}
        self.most = max(self.most, sum(size for _, size in self._alive))
        return result


@contextmanager
def sent() -> Iterator[dict[str, list[int]]]:
    """Yield the bytes of rows of `DIM` numbers that this rank sends to others, as a ring does, call by call."""
    calls: dict[str, list[int]] = defaultdict(list)
    others = dist.get_world_size() - 1

    def counted(name: str, collective: Callable[..., object]) -> Callable[..., object]:
        def call(output: Tensor, given: Tensor, *sizes: list[int], **options: object) -> object:
            if given.ndim == 2 and given.shape[1] == DIM:
                if name == "to each":
                    kept = sizes[1][dist.get_rank()]
                    calls[name].append((len(given) - kept) * DIM * given.element_size())
                else:
                    calls[name].append(others * min(given.nbytes, output.nbytes))
            return collective(output, given, *sizes, **options)

        return call

    kinds = {
        "gather": ("all_gather_single", "all_gather_into_tensor"),
        "sum onto owners": ("reduce_scatter_single", "reduce_scatter_tensor"),
        "to each": ("all_to_all_single",),
    }
    originals = {}
    for kind, names in kinds.items():
        for name in names:
            if hasattr(dist, name):
                originals[name] = getattr(dist, name)
                setattr(dist, name, counted(kind, originals[name]))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


@contextmanager
def looked_at() -> Iterator[list[range | str]]:
    """Yield which candidates are looked at, tile by tile, and when the others' have arrived."""
    events: list[range | str] = []
    statistics, wait = PlainTiles.statistics, Arriving.arrived

    def noted(self: PlainTiles, rows: range, columns: range, known: object) -> object:
        found = statistics(self, rows, columns, known)
        events.append(columns)
        return found

    def waited(self: Arriving) -> object:
        events.append("arrived")
        return wait(self)

    PlainTiles.statistics, Arriving.arrived = noted, waited
    try:
        yield events
    finally:
        PlainTiles.statistics, Arriving.arrived = statistics, wait


def job(world: int) -> Job:
    """Return a batch that is exchanged in several chunks, too large for what is not O(b·D) to hide in."""
    return Job(world, 40, DIM, 4)


def sides(world: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(world)
    queries = torch.randn(40 * world, DIM, generator=generator)
    candidates = queries + 2 * torch.randn(40 * world, DIM, generator=generator)
    return normalize(queries, dim=1), normalize(candidates, dim=1)


def exchanged(world: int, rank: int, group: dist.ProcessGroup) -> dict[str, dict]:
    """Return by objective what one step sends, the most it holds, and whether a second step has the same bits."""
    rows = slice(40 * rank, 40 * rank + 40)
    found = {}
    for name in ("vlc", "circle", "triplet_hn"):
        objective = make(name, normalize=False, **({"margin": 2.0} if name == "triplet_hn" else {}))
        leaves = [side[rows].clone().requires_grad_() for side in sides(world)]
        gradients = []
        for _ in range(2):
            with sent() as calls, looked_at() as events, Held(*leaves) as held:
                loss = objective(*leaves, group=group, backend="tiled", tile=TILE)
                gradients.append(torch.autograd.grad(loss, leaves))
        same = all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
        before = events[: events.index("arrived")]
        found[name] = {"sent": dict(calls), "held": held.most, "same bits": same, "before arrival": before}
    return found
