"""What the ranks of a process group tell each other: all pairs, with exact gradients back to their owners.

Every rank holds b of the B global pairs (ragged, 0 allowed); global order is rank order. One step costs two collectives
forward (three with ids) and one backward. In backward, each rank's gradient of all embeddings is summed onto the owners
(SUM reduce-scatter), never averaged: see `allpairs.engine.dense.loss` for the factor that makes it exact under DDP.

Shapes: N ranks, b local pairs, B global pairs, D embedding, M the longest rank's packed rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from allpairs.engine.pairs import Pairs
from allpairs.errors import UserError


class Everyone(NamedTuple):
    """All B pairs of a group, and where this process's own begin."""

    queries: Tensor
    """[B, D]."""
    candidates: Tensor
    """[B, D]."""
    ids: Tensor | None
    """[B] int64."""
    first: int
    """Global index of this process's first pair."""
    ranks: int
    """N, the number of processes that share the pairs."""


def gather(local: Pairs, group: "dist.ProcessGroup | None") -> Everyone:
    """Return the pairs of every rank of `group`, on every rank; `group=None` means this process alone.

    A collective: every rank must call it, with 0 pairs if it has none, and then backpropagate through it.

    Raises:
        UserError: no pairs at all, or ranks that disagree about embedding size, precision, ids or gradients. Raised on
            every rank alike, where a blind collective would hang.
    """
    ranks = 1 if group is None else dist.get_world_size(group)
    if ranks == 1:
        counts = [len(local.queries)]
    else:
        counts = _agree(local, ranks, group)
    if sum(counts) == 0:
        raise UserError("queries: at least one pair is needed, none was given")
    if ranks == 1:
        return Everyone(local.queries, local.candidates, local.ids, first=0, ranks=1)

    longest = max(counts)
    packed_M2D = torch.stack([local.queries, local.candidates], dim=1)
    packed_M2D = F.pad(packed_M2D, (0, 0, 0, 0, 0, longest - len(local.queries)))
    everyone_N2D = _join(_Gather.apply(packed_M2D, ranks, group), counts)  # [B, 2, D]
    ids = None
    if local.ids is not None:
        ids_M = F.pad(local.ids, (0, longest - len(local.ids)))
        ids = _join(_all_gather(ids_M, ranks, group), counts)
    first = sum(counts[: dist.get_rank(group)])
    return Everyone(everyone_N2D[:, 0], everyone_N2D[:, 1], ids, first, ranks)


def global_value(loss: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Return the global loss, detached, for logging: the mean over the ranks of what `objective(...)` returned on each.

    A rank's own loss is N·(its share of the sum), so that averaged gradients are exact; its mean over the N ranks is
    the value one process would have computed on all pairs. A collective: call it on every rank or on none.
    """
    value = loss.detach().clone()
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(value, group=group)
        value /= dist.get_world_size(group)
    return value


def _agree(local: Pairs, ranks: int, group: "dist.ProcessGroup | None") -> list[int]:
    """Return how many pairs each rank has, after checking that all ranks are about to exchange the same kinds."""
    rows, size = local.queries.shape
    requires_grad = torch.is_grad_enabled() and (local.queries.requires_grad or local.candidates.requires_grad)
    mine = [rows, size, local.queries.element_size() * 8, int(local.ids is not None), int(requires_grad)]
    table = _all_gather(torch.tensor(mine, device=local.queries.device), ranks, group).tolist()
    for column, what in ((1, "embedding size"), (2, "bits of precision"), (3, "ids given"), (4, "gradient required")):
        values = [row[column] for row in table]
        if len(set(values)) > 1:
            raise UserError(f"the ranks of the group disagree about {what}: {values}, rank 0 first; all must be equal")
    return [row[0] for row in table]


def _all_gather(local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> Tensor:
    """Return the `local` [M, …] of every rank as one tensor [N, M, …]."""
    local = local.contiguous()
    everyone = local.new_empty(ranks * len(local), *local.shape[1:])
    # torch 2.13 renamed the collective and deprecated the old name; older versions know only that.
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collective(everyone, local, group=group)
    return everyone.unflatten(0, (ranks, len(local)))


def _join(padded_NM: Tensor, counts: Sequence[int]) -> Tensor:
    """Drop each rank's padding: [N, M, …] -> [B, …] in rank order."""
    return torch.cat([rows[:count] for rows, count in zip(padded_NM, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """`_all_gather` whose backward sums every rank's gradient of the gathered rows onto the rows' owner."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> Tensor:
        ctx.group = group
        return _all_gather(local, ranks, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NM: Tensor) -> tuple[Tensor, None, None]:
        gradient_M = torch.empty_like(gradient_NM[0], memory_format=torch.contiguous_format)
        collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        collective(gradient_M, gradient_NM.flatten(0, 1).contiguous(), op=dist.ReduceOp.SUM, group=ctx.group)
        return gradient_M, None, None
