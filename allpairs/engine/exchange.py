"""What the ranks of a process group tell each other: all items of the batch, with exact gradients back to their owners.

Every rank holds its own rows of both sides (any number, 0 too); global order is rank order. Gradients of gathered rows
are summed onto the owners (SUM reduce-scatter), never averaged: see `allpairs.engine.dense.loss` for the factor that
makes it exact under DistributedDataParallel.

Shapes: N ranks, b rows of one rank, B rows of all ranks, D embedding, M the longest rank's rows.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.batch import LocalBatch, nothing_or_nan
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


class Proposal(NamedTuple):
    """What one rank is about to compute, but for its rows."""

    settings: dict[str, object]
    """By name, what must be the same on every rank, as texts and whole numbers."""
    learned: dict[str, Tensor | float]
    """By name, at most `_LEARNED` numbers that training changes: the same but for rounding."""
    choice: int = 0
    """What the rank would choose by itself, for the caller to compare."""


class Agreement(NamedTuple):
    """What the ranks have found to be the case."""

    batch: LocalBatch
    """This rank's rows."""
    layout: RankLayout
    nothing: Tensor
    """[]: 0, or NaN if an embedding of any rank is not finite."""
    choices: list[int]
    """`Proposal.choice` of every rank."""


_LEARNED = 2
_WRAP = "; put the objective into the module that DistributedDataParallel wraps, so that its parameters move alike"


def agree(
    prepared: Callable[[], LocalBatch], proposal: Callable[[LocalBatch], Proposal], group: "dist.ProcessGroup | None"
) -> Agreement:
    """Check this rank's rows, and compare with the other ranks of `group` what must be equal before anyone computes.

    `prepared` checks the rows and returns them; what it raises ends the call on every rank. `group=None` means this
    process alone. A collective, one small message where all is well: every rank must call it, with 0 rows if it has
    none.

    Raises:
        UserError: no items at all, rows that a rank refuses, or ranks that disagree: the same line on every rank, where
            a blind collective would hang or pair what does not belong together.
    """
    check_group(group)
    ranks = 1 if group is None else dist.get_world_size(group)
    if ranks == 1:
        batch = prepared()
        layout = RankLayout([len(batch.queries)], [len(batch.candidates)], 0, None)
        agreement = Agreement(batch, layout, nothing_or_nan(batch), [proposal(batch).choice])
    else:
        agreement = _agree_with_others(prepared, proposal, ranks, group)
    for what, items in (("queries", agreement.layout.all_queries), ("candidates", agreement.layout.all_candidates)):
        if not items:
            raise UserError(f"{what}: at least one row is needed, none was given")
    return agreement


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


def refuse_difference(what: str, values: Sequence[object], hint: str = "") -> NoReturn:
    """Say what the ranks disagree about: on each of them the same."""
    raise UserError(
        f"the ranks of the group disagree about {what}: {list(values)}, rank 0 first; all must be equal{hint}"
    )


def _agree_with_others(
    prepared: Callable[[], LocalBatch],
    proposal: Callable[[LocalBatch], Proposal],
    ranks: int,
    group: "dist.ProcessGroup | None",
) -> Agreement:
    refused: Exception | None = None
    try:
        batch = prepared()
        mine = proposal(batch)
    except Exception as error:  # whatever it is, the others must not wait for this rank
        refused = error
        on_gpu = torch.cuda.is_available() and "nccl" in dist.get_backend(group)
        row = torch.zeros(6 + _LEARNED, dtype=torch.int64, device="cuda" if on_gpu else "cpu")
        row[0] = 1
    else:
        settings = _settings_of(batch) | mine.settings
        digest = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=8).digest()
        device = batch.queries.device
        learned = torch.cat(
            [torch.as_tensor(value, device=device).detach().double().reshape(1) for value in mine.learned.values()]
            + [torch.zeros(_LEARNED - len(mine.learned), device=device, dtype=torch.float64)]
        )
        numbers = [
            0,
            int.from_bytes(digest, "big", signed=True),
            len(batch.queries),
            len(batch.candidates),
            mine.choice,
        ]
        broken = nothing_or_nan(batch).isnan().reshape(1).long()
        row = torch.cat([torch.tensor(numbers, device=device), broken, learned.view(torch.int64)])
    table_NX = _all_gather(row, ranks, group)
    table = table_NX.tolist()
    if any(numbers[0] for numbers in table):
        _refuse_together(refused, group)
    assert refused is None
    if len({numbers[1] for numbers in table}) > 1:
        each = _everyones(settings, ranks, group)
        for what in sorted({name for one in each for name in one}, key=lambda name: (name != "objective", name)):
            values = [one.get(what) for one in each]
            if any(value != values[0] for value in values):
                refuse_difference(what, values)
    learned_NX = table_NX[:, -_LEARNED:].contiguous().view(torch.float64).tolist()
    for number, what in enumerate(mine.learned):
        values = [one[number] for one in learned_NX]
        # Machines may differ in the last bit of an exponential; parameters that are not averaged drift far apart.
        if any(not math.isclose(value, values[0], rel_tol=1e-6, abs_tol=1e-9) for value in values) and all(
            math.isfinite(value) for value in values
        ):
            refuse_difference(what, values, _WRAP)
    layout = RankLayout(
        [numbers[2] for numbers in table], [numbers[3] for numbers in table], dist.get_rank(group), group
    )
    precision = torch.promote_types(batch.queries.dtype, torch.float32)
    nothing = table_NX[:, 5].sum().to(precision)
    return Agreement(batch, layout, torch.where(nothing > 0, torch.nan, nothing), [numbers[4] for numbers in table])


def _settings_of(batch: LocalBatch) -> dict[str, object]:
    sides = {"queries": batch.queries, "candidates": batch.candidates}
    return {
        "embedding size": batch.queries.shape[1],
        "bits of precision": batch.queries.element_size() * 8,
        "type of embeddings": str(batch.queries.dtype).removeprefix("torch."),
        "ids given": int(batch.ids.queries is not None),
        "margins given": int(batch.margins is not None),
    } | {
        f"gradient required of {name}": int(torch.is_grad_enabled() and side.requires_grad)
        for name, side in sides.items()
    }


def _refuse_together(refused: Exception | None, group: "dist.ProcessGroup | None") -> NoReturn:
    """End the call on every rank with what the first rank that refused its rows says of them."""
    texts = _everyones(None if refused is None else str(refused), dist.get_world_size(group), group)
    if refused is not None and not isinstance(refused, UserError):
        raise refused
    rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
    raise UserError(f"rank {rank} of the group: {text}") from refused


def _everyones(value: Any, ranks: int, group: "dist.ProcessGroup | None") -> list[Any]:
    everyone: list[Any] = [None] * ranks
    dist.all_gather_object(everyone, value, group=group)
    return everyone


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


def _all_gather(local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> Tensor:
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
    """`_all_gather` whose backward sums every rank's gradient of the gathered rows onto the rows' owner."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: int, group: "dist.ProcessGroup | None") -> Tensor:
        ctx.group = group
        return _all_gather(local, ranks, group)

    @staticmethod
    @only_once
    def backward(ctx: Any, gradient_NM: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(gradient_NM, ctx.group), None, None
