"""What each process of the worlds test does: train one step of a tiny model on its share of one fixed batch."""

import itertools
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from allpairs.engine import chunks, global_value, similarity_statistics
from allpairs.errors import UserError
from allpairs.objectives import make, names
from tests.allpairs.engine import counting
from tests.allpairs.objectives import cases

PAIRS = 12
IDS = torch.tensor([0, 1, 2, 3, 0, 5, 6, 1, 8, 0, 10, 11])
TEXTS = torch.tensor([7, 1, 2, 7, 4, 5, 2, 1, 8, 9, 7, 11])
"""Beside the ids: 0 and 4 meet by their id, 0 and 3 by their text."""
MARGINS = torch.linspace(-0.1, 0.4, PAIRS, dtype=torch.float64)
OBJECTIVES = {
    cases.label(name, arguments): (name, {k: v for k, v in arguments.items() if k != "margins"}, "margins" in arguments)
    for name, case in cases.TABLE.items()
    for arguments in case.worlds
}
LAYOUTS = {
    "even": {1: [12], 2: [6, 6], 3: [4, 4, 4], 4: [3, 3, 3, 3]},
    "ragged": {1: [12], 2: [9, 3], 3: [2, 7, 3], 4: [1, 6, 2, 3]},
    "empty_rank": {1: [12], 2: [0, 12], 3: [5, 0, 7], 4: [0, 7, 0, 5]},
}
BACKENDS = {"dense": {"backend": "dense"}, "tiled": {"backend": "tiled", "tile": 5}}
# In float64 every objective by both backends; in float32 those that have no steep slope of their own.
GENTLE = ("triplet_hn", "vlc", "unified", "nt_xent")
CASES = [
    (objective, reduction, dtype, layout, ids, backend)
    for objective in OBJECTIVES
    for reduction, dtype in [("mean", "float64"), ("sum", "float64"), ("mean", "float32")]
    for layout, ids, backend in itertools.product(LAYOUTS, ["no_ids", "ids", "texts", "ids_and_texts"], BACKENDS)
    if "texts" not in ids or (dtype == "float64" and reduction == "mean" and layout == "ragged")
    if dtype == "float64" or (OBJECTIVES[objective][0] in GENTLE and "weighting" not in OBJECTIVES[objective][1])
    if reduction == "mean" or layout == "ragged"
]


class Training(nn.Module):
    """Two encoders and the objective in one module, as the training service wraps them."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.images = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.texts = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
        self.objective = objective

    def forward(self, images: Tensor, texts: Tensor, **given: object) -> Tensor:
        return self.objective(self.images(images), self.texts(texts), **given)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(PAIRS, 5, generator=generator, dtype=torch.float64)
    return images, images[:, :3] + 0.5 * torch.randn(PAIRS, 3, generator=generator, dtype=torch.float64)


def share(layout: str, world: int, rank: int) -> slice:
    return part(LAYOUTS[layout][world], rank)


def part(counts: list[int], rank: int) -> slice:
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def captions() -> tuple[Tensor, Tensor]:
    """Return two texts for each image of the batch, and their ids."""
    _, texts = batch()
    return torch.stack([texts, texts.roll(1, dims=1)], dim=1).flatten(0, 1), IDS.repeat_interleave(2)


def inputs(objective: str, layout: str, ids: str, world: int, rank: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return one rank's images, texts and ids.

    Objectives over sets get two texts for each image where there are ids, spread over the ranks in another way than the
    images, so that an image and its texts live on different ranks.
    """
    name, _, with_margins = OBJECTIVES[objective]
    rows = share(layout, world, rank)
    images, texts = batch()
    given = {"margins": MARGINS[rows]} if with_margins else {}
    if ids in ("no_ids", "texts"):
        return images[rows], texts[rows], given | ({"text_ids": TEXTS[rows]} if ids == "texts" else {})
    alike = ids == "ids_and_texts"
    if name not in cases.SETS:
        given |= {"text_ids": TEXTS[rows]} if alike else {}
        return images[rows], texts[rows], {**given, "query_ids": IDS[rows]}
    text_rows = part([2 * count for count in reversed(LAYOUTS[layout][world])], rank)
    texts, text_ids = captions()
    given |= {"text_ids": TEXTS.repeat(2)[text_rows]} if alike else {}
    return images[rows], texts[text_rows], {**given, "query_ids": IDS[rows], "candidate_ids": text_ids[text_rows]}


def steps(world: int, rank: int, group: dist.ProcessGroup | None, chosen: list | None = None) -> dict:
    """Return, for each of CASES (or of `chosen`), the global loss and the gradients of encoder and objective."""
    found = {}
    for (objective, reduction, dtype), alike in itertools.groupby(chosen or CASES, key=lambda case: case[:3]):
        name, arguments, _ = OBJECTIVES[objective]
        torch.manual_seed(5)
        model = Training(make(name, **arguments, reduction=reduction)).to(getattr(torch, dtype))
        wrapped = model if group is None else DistributedDataParallel(model, process_group=group)
        for case in alike:
            _, _, _, layout, ids, backend = case
            images, texts, given = inputs(objective, layout, ids, world, rank)
            images, texts = (x.to(getattr(torch, dtype)) for x in (images, texts))
            loss = wrapped(images, texts, **given, **BACKENDS[backend], group=group)
            loss.backward()
            encoder = [*model.images.parameters(), *model.texts.parameters()]
            found[case] = {
                "loss": global_value(loss, group),
                "encoder": torch.cat([parameter.grad.flatten() for parameter in encoder]),
                **{key: parameter.grad.clone() for key, parameter in model.objective.named_parameters()},
            }
            model.zero_grad()
    return found


def tied(world: int, rank: int, group: dist.ProcessGroup | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return by backend this rank's gradients where every negative ties exactly: all scores 1/2, the positives 0."""
    return {backend: tied_by(BACKENDS[backend], world, rank, group) for backend in BACKENDS}


def tied_by(call: dict[str, object], world: int, rank: int, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    rows = share("ragged", world, rank)
    queries = (0.5 * (1 - torch.eye(PAIRS)))[rows].requires_grad_()
    candidates = torch.eye(PAIRS)[rows].requires_grad_()
    make("triplet_hn", margin=0.2, reduction="sum", normalize=False)(
        queries, candidates, **call, group=group
    ).backward()
    return queries.grad, candidates.grad


def statistics(world: int, rank: int, group: dist.ProcessGroup | None) -> dict:
    """Return the similarity statistics of the batch under each layout, with and without ids."""
    images, texts = batch()
    found = {}
    for layout, given in itertools.product(LAYOUTS, [{}, {"query_ids": IDS}, {"query_ids": IDS, "text_ids": TEXTS}]):
        rows = share(layout, world, rank)
        found[layout, tuple(given)] = similarity_statistics(
            images[rows, :3], texts[rows], **{name: ids[rows] for name, ids in given.items()}, group=group, block=4
        )
    return found


def disagreements(rank: int, group: dist.ProcessGroup) -> dict:
    """Return the message of each call in which rank 0 gives something else than the others, and the seconds in all."""
    x, zero = torch.eye(4), rank == 0
    drifted = make("vlc", scale=20.0 if zero else 14.0, learn_scale=True)
    outside = dist.new_group([0])
    alone = dist.new_group([rank for rank in range(dist.get_world_size()) if rank])
    outside = alone if zero else outside  # each of them a group that this rank is not in
    mesh = DeviceMesh("cpu", list(range(dist.get_world_size())))

    def differ(name: str, key: str, here: object, there: object) -> Callable[[], Tensor]:
        return lambda: make(name, **{key: here if zero else there})(x, x, group=group)

    def called(name: str = "vlc", **call: tuple[object, object]) -> Callable[[], Tensor]:
        """Call with the first value on rank 0 and the second on the others."""
        return lambda: make(name)(x, x, **{key: values[not zero] for key, values in call.items()}, group=group)

    calls = {
        "ids": called(query_ids=(torch.arange(4), None)),
        "size": lambda: make("vlc")(*[x[:, :3] if zero else x] * 2, group=group),
        "precision": lambda: make("vlc")(*[x.double() if zero else x] * 2, group=group),
        "gradient": lambda: make("vlc")(x.clone().requires_grad_(zero), x, group=group),
        "margins": called("unified", margins=(torch.zeros(4), None)),
        "texts": called(text_ids=(torch.arange(4), None)),
        "nothing": lambda: make("vlc")(x[:0], x[:0], group=group),
        "objective": lambda: make("vlc" if zero else "circle")(x, x, group=group),
        "warm-up": lambda: make("triplet" if zero else "triplet_hn")(x, x, group=group),
        "statistics": lambda: similarity_statistics(x, x, group=group) if zero else make("vlc")(x, x, group=group),
        "logged": lambda: global_value(x.sum(), group) if zero else make("vlc")(x, x, group=group),
        "backend": called(backend=("dense", "tiled")),
        "auto": called(backend=("auto", "tiled")),
        "margin": differ("triplet", "margin", 0.3, 0.2),
        "scale": differ("unified", "scale", 50.0, 60.0),
        "weighting": differ("unified", "weighting", "ssp", "rsp"),
        "polynomial": differ("rsp", "coefficients", (0, 1, 0), (0, 1, 0.5)),
        "reduction": differ("vlc", "reduction", "sum", "mean"),
        "normalize": differ("vlc", "normalize", False, True),
        "learned": lambda: drifted(x, x, group=group),
        "shape": lambda: make("vlc")(x[0] if zero else x, x, group=group),
        "id shape": called(query_ids=(torch.arange(3), torch.arange(4))),
        "text shape": called(text_ids=(torch.arange(3), torch.arange(4))),
        "id type": called(query_ids=(torch.full((4,), torch.nan), torch.arange(4))),
        "tile": called(tile=(0, 5)),
        "spelling": called(backend=("tilde", "tiled")),
        "triton": called("circle", backend=("triton", "tiled")),
        "no tensor": lambda: make("vlc")(None if zero else x, x, group=group),
        "equal ids": called(query_ids=(torch.zeros(4, dtype=torch.int64),) * 2),
        "equal ids on each": lambda: make("vlc")(x, x, query_ids=torch.full((4,), rank), group=group),
        "not in it": lambda: make("vlc")(x, x, group=outside),
        "value": lambda: global_value(x.sum(), outside),
        "text": lambda: make("vlc")(x, x, group="world"),
        "mesh": lambda: make("vlc")(x, x, group=mesh),
        "list": lambda: make("vlc")(x, x, group=[0, 1]),
        "flag": lambda: make("vlc")(x, x, group=True),
    }
    messages = {}
    start = time.monotonic()
    for what, call in calls.items():
        try:
            call()
        except Exception as error:
            messages[what] = f"{'' if isinstance(error, UserError) else 'BUG '}{error}"
    # Whoever caught it goes on with the others: all are at the same call.
    value = global_value(make("vlc")(x, x, group=group), group)
    return {"messages": messages, "seconds": time.monotonic() - start, "next": value}


FACTORS = [1.0, 3.0, 0.0, 2.0]
"""What each rank multiplies its loss by."""


def factors(world: int, rank: int, group: dist.ProcessGroup | None) -> dict:
    """Return by objective and backend the gradients where each rank multiplies its loss by a factor of its own."""
    found = {}
    for objective, (name, arguments, _) in OBJECTIVES.items():
        for backend, call in BACKENDS.items():
            torch.manual_seed(5)
            model = Training(make(name, **arguments)).double()
            images, texts, given = inputs(objective, "ragged", "ids", world, rank)
            (FACTORS[rank] * model(images, texts, **given, **call, group=group)).backward()
            found[objective, backend] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return found


def broken(world: int, group: dist.ProcessGroup, rank: int) -> dict:
    """Return by objective, backend and bad rank this rank's loss, and whether its gradient has a NaN, where one rank
    has a row that is not finite."""
    found = {}
    for number, (name, backend, bad) in enumerate(itertools.product(names(), BACKENDS, range(world))):
        generator = torch.Generator().manual_seed(rank)
        sides = torch.randn(2, 4, 6, generator=generator)
        if rank == bad:
            sides[1, 2, 3] = (torch.nan, torch.inf, -torch.inf)[number % 3]
        loss = make(name)(*sides.requires_grad_(), **BACKENDS[backend], group=group)
        (gradient,) = torch.autograd.grad(loss, sides)
        found[name, backend, bad] = (loss.item(), bool(gradient.isnan().any()))
    return found


def forgotten_group() -> list[str]:
    """Return the warnings of calls without `group=` inside a job of several ranks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        global_value(make("vlc")(torch.eye(4), torch.eye(4)))
    return [str(warning.message) for warning in caught]


def everything(rank: int, world: int, directory: str) -> None:
    """Join a gloo group of `world` processes, run all of the above and save what came out."""
    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    group = dist.group.WORLD
    usual, chunks.LEAST_COLUMNS = chunks.LEAST_COLUMNS, 1
    in_chunks = steps(world, rank, group)  # a row or a few of each rank at a time
    chunks.LEAST_COLUMNS = counting.LEAST_COLUMNS
    exchanged = counting.exchanged(world, rank, group)
    chunks.LEAST_COLUMNS = usual
    results = {
        "steps": in_chunks,
        "exchanged": exchanged,
        "exchanged at once": counting.exchanged(world, rank, group),
        "tied": tied(world, rank, group),
        "statistics": statistics(world, rank, group),
        "disagreements": disagreements(rank, group),
        "factors": factors(world, rank, group),
        "broken": broken(world, group, rank),
        "forgotten_group": forgotten_group(),
    }
    torch.save(results, Path(directory) / f"rank{rank}.pt")
    dist.destroy_process_group()
