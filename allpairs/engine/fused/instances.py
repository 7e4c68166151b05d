"""Which items can be of one instance, as the kernels ask it: small numbers, and their range over runs of items.

Comparing all pairs of ids costs about an eighth of the products, so it is done only in blocks where two ids can be
equal: with ids that follow the order of the batch those along the diagonal, with arbitrary ids all.

Shapes: B items of one side, G runs of `RUN` items.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.fused import kernels

_PADDED = 32
"""Runs beyond the last item, which a block at the edge may ask for: they hold nothing."""
_LARGEST = 2**31 - 1


class Instances(NamedTuple):
    """The items of one side."""

    numbers: Tensor
    """[B] int32: equal where two items are of one instance; the index of its first item, as a rule."""
    ranges: Tensor
    """[G, 2] int32: the lowest and the highest number of each run; empty beyond the last."""

    @classmethod
    def of(cls, numbers_B: Tensor) -> "Instances":
        """Return the side of these numbers [B] int32."""
        runs = -(-len(numbers_B) // kernels.RUN.value) + _PADDED
        missing = (0, runs * kernels.RUN.value - len(numbers_B))
        lowest_G = F.pad(numbers_B, missing, value=_LARGEST).view(runs, -1).amin(dim=1)
        highest_G = F.pad(numbers_B, missing, value=-1).view(runs, -1).amax(dim=1)
        return cls(numbers_B, torch.stack([lowest_G, highest_G], dim=1))


def by_index(count: int, device: torch.device) -> Instances:
    """Return the side whose items are each an instance of its own."""
    return Instances.of(torch.arange(count, dtype=torch.int32, device=device))


def by_ids(query_ids_B: Tensor, candidate_ids_B: Tensor) -> tuple[Instances, Instances]:
    """Return both sides from their ids, without waiting for the device.

    An instance's number is the index of its first query, or of its first candidate beyond all queries: ids that follow
    the batch then let most blocks be passed over, whatever the ids are.
    """
    ids_N = torch.cat([query_ids_B, candidate_ids_B])
    sorted_N, order_N = ids_N.sort(stable=True)  # the first of equal ids is the one with the lowest index
    place_N = torch.arange(len(ids_N), device=ids_N.device)
    begins_N = F.pad(sorted_N[1:] != sorted_N[:-1], (1, 0), value=True)
    first_N = torch.where(begins_N, place_N, 0).cummax(dim=0).values
    numbers_N = torch.empty_like(order_N, dtype=torch.int32)
    numbers_N[order_N] = order_N[first_N].to(torch.int32)
    of_queries_B, of_candidates_B = numbers_N.split([len(query_ids_B), len(candidate_ids_B)])
    # A copy begins at a multiple of 16 bytes for every number of queries: kernels are compiled once.
    return Instances.of(of_queries_B), Instances.of(of_candidates_B.clone())
