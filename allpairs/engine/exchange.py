"""What the ranks of a process group exchange: all items of the batch, with exact gradients back to their owners.

Every rank holds its own rows of both sides (any number, 0 too); global order is rank order. Gradients of gathered rows
are summed onto the owners (SUM reduce-scatter), never averaged: see `allpairs.engine.dense.loss` for the factor that
makes it exact under DistributedDataParallel.

Shapes: N ranks, b rows of one rank, B rows of all ranks, D embedding, M the longest rank's rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.products import only_once
from allpairs.errors import UserError


class RankLayout(NamedTuple):
    """Which rank owns which rows of the batch."""

    query_counts: list[int]
    """Per rank, rank 0 first."""
    candidate_counts: list[int]
    rank: int
    group: "dist.ProcessGroup | None"

    @property
    def world_size(self) -> int:
        """N, the number of ranks that have a part of the batch."""
        return len(self.query_counts)

    @property
    def all_queries(self) -> range:
        """Global indices of the queries of all ranks."""
        return range(sum(self.query_counts))

    @property
    def all_candidates(self) -> range:
        """Global indices of the candidates of all ranks."""
        return range(sum(self.candidate_counts))

    @property
    def own_queries(self) -> range:
        """Global indices of this rank's queries."""
        return _own(self.query_counts, self.rank)

    @property
    def own_candidates(self) -> range:
        """Global indices of this rank's candidates."""
        return _own(self.candidate_counts, self.rank)


def gather(local: Tensor, counts: Sequence[int], group: "dist.ProcessGroup | None") -> Tensor:
    """Return the rows of every rank [B, …] from each rank's own [b, …]; differentiable by a collective.

    `counts`: the number of rows of every rank.
    """
    if len(counts) == 1:
        return local
    padded_NM = _Gather.apply(_pad(local, max(counts)), len(counts), group)
    return torch.cat([rows[:count] for rows, count in zip(padded_NM, counts, strict=True)])


def sum_onto_owners(rows: Tensor, counts: Sequence[int], group: "dist.ProcessGroup | None") -> Tensor:
    """Return this rank's rows [b, …] of the sum over the ranks of `rows` [B, …]: the transpose of `gather`."""
    if len(counts) == 1:
        return rows
    longest = max(counts)
    padded_NM = rows
    if min(counts) != longest:
        padded_NM = torch.cat([_pad(piece, longest) for piece in rows.split(list(counts))])
    return _reduce_scatter(padded_NM.unflatten(0, (len(counts), longest)), group)[: counts[dist.get_rank(group)]]


def check_group(group: object) -> None:
    """Refuse what is no process group, and a group that this process has no part in.

    Raises:
        UserError: the message says what is accepted.
    """
    if group is None:
        return
    if group is dist.GroupMember.NON_GROUP_MEMBER or (
        isinstance(group, dist.ProcessGroup) and dist.get_rank(group) < 0
    ):
        raise UserError(
            f"group: rank {dist.get_rank()} of the job is not in it; accepted: a group of this process, or None"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise UserError(
            f"group={group!r} is impossible; accepted: a process group of torch.distributed (of a DeviceMesh, "
            "mesh.get_group()), or None"
        )


def global_value(loss: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Return the global loss, detached, for logging: the mean over the ranks of what `objective(...)` returned on each.

    A rank's own loss is N·(its share of the sum), so that averaged gradients are exact; its mean over the N ranks is
    the value one process would have computed on all pairs. A collective: call it on every rank or on none.
    """
    check_group(group)
    value = loss.detach().clone()
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(value, group=group)
        value /= dist.get_world_size(group)
    return value


def _pad(rows: Tensor, length: int) -> Tensor:
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, length - len(rows)))


def _own(counts: Sequence[int], rank: int) -> range:
    first = sum(counts[:rank])
    return range(first, first + counts[rank])


def all_gather(local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> Tensor:
    """Return the `local` [M, …] of every rank as one tensor [N, M, …]."""
    local = local.contiguous()
    everyone = local.new_empty(ranks * len(local), *local.shape[1:])
    # torch 2.13 renamed the collective and deprecated the old name; older versions know only that.
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collective(everyone, local, group=group)
    return everyone.unflatten(0, (ranks, len(local)))


def _reduce_scatter(parts_NM: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """Return this rank's [M, …] of the sum over the ranks of [N, M, …]."""
    total_M = torch.empty_like(parts_NM[0], memory_format=torch.contiguous_format)
    collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    collective(total_M, parts_NM.flatten(0, 1).contiguous(), op=dist.ReduceOp.SUM, group=group)
    return total_M


class _Gather(torch.autograd.Function):
    """`all_gather` whose backward sums every rank's gradient of the gathered rows onto the rows' owner."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> Tensor:
        ctx.group = group
        return all_gather(local, ranks, group)

    @staticmethod
    @only_once
    def backward(ctx: Any, gradient_NM: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(gradient_NM, ctx.group), None, None
