"""Ranks that should hold the same weights, and whether they do: a checksum of each tensor, compared over the ranks."""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.world import World, is_shared

SHOWN = 8
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def difference(modules: Mapping[str, nn.Module], world: World) -> str | None:
    """Say which is the first parameter that the ranks hold unequal, and who holds what; None where all are equal.

    `modules` by the prefix of their parameters' names, e.g. ``"average."``. What ranks share row by row is left out:
    nobody else has it. Collective; the same words on every rank. A number a parameter crosses the network, as long as
    they are equal.
    """
    whole = list(_whole(modules))
    if world.control is None or not whole:
        return None
    names, tensors = zip(*whole, strict=True)
    sums_P = torch.stack([checksum(tensor) for tensor in tensors]).cpu()
    # The largest of x and of ~x, that is of x the smallest: apart where any rank's differs.
    extremes_2P = torch.cat([sums_P, ~sums_P])
    dist.all_reduce(extremes_2P, op=dist.ReduceOp.MAX, group=world.control)
    largest_P, smallest_P = extremes_2P[: len(names)], ~extremes_2P[len(names) :]
    apart = (largest_P != smallest_P).nonzero().flatten().tolist()
    if not apart:
        return None
    held = world.gather(int(sums_P[apart[0]]))
    usual, count = Counter(held).most_common(1)[0]
    others = [rank for rank, value in enumerate(held) if value != usual]
    # Of as many one way as the other nobody can say who is right.
    whom = f"on {_ranks(others)}" if count > len(others) else f"between {_ranks(list(range(world.size)))}"
    return f"{names[apart[0]]} differs {whom} ({len(apart)} of {len(names)} parameters do)"


def checksum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bits, read as integers, modulo 2⁶⁴: exact, so in whatever order it is added up."""
    return tensor.detach().view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def _whole(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            # What ZeRO-3 keeps whole for the forward is shared for the step: both.
            if (not is_shared(parameter) or getattr(parameter, "ds_persist", False)) and parameter.numel():
                yield prefix + name, parameter


def _ranks(ranks: list[int]) -> str:
    told = ", ".join(map(str, ranks[:SHOWN])) + (", …" if len(ranks) > SHOWN else "")
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {told}"
