"""What the ranks of a process group exchange: all items of the batch, with exact gradients back to their owners.

Every rank holds its own rows of both sides (any number, 0 too); global order is rank order. Gradients of gathered rows
are summed onto the owners (SUM reduce-scatter), never averaged: see `allpairs.engine.dense.loss` for the factor that
makes it exact under DistributedDataParallel.

Shapes: N ranks, b rows of one rank, B rows of all ranks, D embedding, M the longest rank's rows.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.chunks import Chunk, inside
from allpairs.engine.products import only_once
from allpairs.engine.rows import Rows, in_one_piece
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
    longest = max(counts)
    if min(counts) == longest:  # what arrives is the result
        everyone: Tensor = _Gather.apply(local, len(counts), group)
        return everyone.flatten(0, 1)
    padded_NM = _Gather.apply(_pad(local, longest), len(counts), group)
    return torch.cat([rows[:count] for rows, count in zip(padded_NM, counts, strict=True)])


class Arriving(Rows):
    """The rows of all ranks [B, D], on their way: this rank's own can be compared before the others' are there.

    Whoever asks for others waits for all (on a GPU the stream does, not the process). Making one is a collective.
    """

    def __init__(self, own_bD: Tensor, layout: RankLayout) -> None:
        counts = layout.candidate_counts
        self._own_bD, self._own_range, self._counts = in_one_piece(own_bD), layout.own_candidates, counts
        longest = max(counts)
        parts = self._own_bD if len(own_bD) == longest else _pad(self._own_bD, longest)
        self._parts_NMD, self._work = _start_all_gather(parts, len(counts), layout.group)
        self._travelling: Tensor | None = parts  # to be kept until it has been read
        equal = min(counts) == longest  # what arrives is the result
        super().__init__(self._parts_NMD.flatten(0, 1) if equal else own_bD.new_empty(sum(counts), own_bD.shape[1]))

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Return some rows; waits unless they are this rank's own."""
        own = self._own_range
        if self._travelling is not None and isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            if own.start <= start <= stop <= own.stop:
                return self._own_bD[start - own.start : stop - own.start : step]
        return self.arrived()[which]

    def arrived(self) -> Rows:
        """Return all rows, once they are there."""
        if self._travelling is not None:
            self._work.wait()
            self._travelling = None
            if len(self.given) < self._parts_NMD.shape[:2].numel():
                places = zip(self.given.split(self._counts), self._parts_NMD, strict=True)
                for place, part_MD in places:
                    place.copy_(part_MD[: len(place)])
            del self._parts_NMD
        return Rows(self.given)


class SumsOntoOwners:
    """The gradients of all candidates, summed over the ranks chunk by chunk: one travels while the next is computed.

    No rank holds more than two chunks, together its part, beside the sums of its own rows: the transpose of `gather`,
    never whole.
    """

    def __init__(self, layout: RankLayout, own_bD: Rows, precision: torch.dtype) -> None:
        self._layout, self._own, self._precision = layout, own_bD, precision
        self._result_bD: Tensor | None = None
        self._spare: list[Tensor] = []
        self._travelling: _Travelling | None = None

    def buffer(self, chunk: Chunk) -> Tensor:
        """Return zeros [N·m, D] for this rank's part of the gradients of a chunk, m places for each rank's rows."""
        count = len(chunk.pieces) * chunk.length
        if self._spare and len(self._spare[-1]) >= count:
            return self._spare.pop()[:count].zero_()
        return torch.zeros(count, self._own.shape[1], dtype=self._precision, device=self._own.device)

    def send(self, chunk: Chunk, gradient_CD: Tensor) -> None:
        """Begin to sum a finished `buffer` over the ranks, which each call with theirs. A collective."""
        if self._layout.world_size == 1:
            self._result_bD = self._own.to_given_(gradient_CD).to(self._own.dtype)
            return
        self._receive()
        total_mD = gradient_CD.new_empty(chunk.length, gradient_CD.shape[1])
        work = _start_reduce_scatter(total_mD, gradient_CD, self._layout.group)
        self._travelling = _Travelling(chunk, gradient_CD, total_mD, work)

    def finished(self) -> Tensor:
        """Return the gradient of this rank's own candidates as given [b, D]."""
        self._receive()
        assert self._result_bD is not None
        return self._result_bD

    def _receive(self) -> None:
        if self._travelling is None:
            return
        chunk, gradient_CD, total_mD, work = self._travelling
        self._travelling = None
        work.wait()  # on a GPU the stream waits, not this process
        self._spare.append(gradient_CD)
        if self._result_bD is None:
            self._result_bD = torch.empty(self._own.shape, dtype=self._own.dtype, device=self._own.device)
        piece = inside(chunk.pieces[self._layout.rank], self._layout.own_candidates)
        self._result_bD[piece] = self._own.to_given_(total_mD[: piece.stop - piece.start], piece.start)


class _Travelling(NamedTuple):
    """A chunk on its way: nobody may write to its tensors."""

    chunk: Chunk
    gradient_CD: Tensor
    total_mD: Tensor
    work: "dist.Work"


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


def warn_alone(what: str, consequence: str, *, stacklevel: int) -> None:
    """Warn, in a job of several ranks, that `what` was called without a group."""
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks > 1:
        warnings.warn(
            f"{what} called without group= in a job of {ranks} ranks: {consequence}", stacklevel=stacklevel + 1
        )


def _pad(rows: Tensor, length: int) -> Tensor:
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, length - len(rows)))


def _own(counts: Sequence[int], rank: int) -> range:
    first = sum(counts[:rank])
    return range(first, first + counts[rank])


def all_gather(local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> Tensor:
    """Return the `local` [M, …] of every rank as one tensor [N, M, …]."""
    everyone, work = _start_all_gather(local.contiguous(), ranks, group)
    work.wait()
    return everyone


def _start_all_gather(local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> "tuple[Tensor, dist.Work]":
    """Begin to gather the contiguous `local` [M, …] of every rank into one tensor [N, M, …]."""
    everyone = local.new_empty(ranks * len(local), *local.shape[1:])
    # torch 2.13 renamed the collective and deprecated the old name; older versions know only that.
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work: dist.Work = collective(everyone, local, group=group, async_op=True)
    return everyone.unflatten(0, (ranks, len(local))), work


def _reduce_scatter(parts_NM: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """Return this rank's [M, …] of the sum over the ranks of [N, M, …]."""
    total_M = torch.empty_like(parts_NM[0], memory_format=torch.contiguous_format)
    _start_reduce_scatter(total_M, parts_NM.flatten(0, 1).contiguous(), group).wait()
    return total_M


def _start_reduce_scatter(total_M: Tensor, parts: Tensor, group: "dist.ProcessGroup | None") -> "dist.Work":
    """Begin to sum `parts` [N·M, …] over the ranks, this rank's M of them into `total_M`."""
    collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    work: dist.Work = collective(total_M, parts, op=dist.ReduceOp.SUM, group=group, async_op=True)
    return work


def exchange_rows(
    rows_TX: Tensor, sent: Sequence[int], received: Sequence[int], group: "dist.ProcessGroup | None"
) -> Tensor:
    """Send each rank its next `sent` rows of [T, …] and return what all ranks sent to this one, rank 0 first."""
    arrived = rows_TX.new_empty(sum(received), *rows_TX.shape[1:])
    dist.all_to_all_single(arrived, rows_TX.contiguous(), list(received), list(sent), group=group)
    return arrived


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
