"""What the ranks of a process group compare before anyone computes: one small message of each, once per call.

Shapes: N ranks, X numbers of a message.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from allpairs.engine.batch import LocalBatch, nothing_or_nan
from allpairs.engine.exchange import RankLayout, all_gather, check_group, warn_alone
from allpairs.errors import UserError


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


def refuse_difference(what: str, values: Sequence[object], hint: str = "") -> NoReturn:
    """Say what the ranks disagree about: on each of them the same."""
    raise UserError(
        f"the ranks of the group disagree about {what}: {list(values)}, rank 0 first; all must be equal{hint}"
    )


def global_value(loss: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Return the global loss, detached, for logging: the mean over the ranks of what `objective(...)` returned on each.

    A rank's own loss is N·(its share of the sum), so that averaged gradients are exact; its mean over the N ranks is
    the value one process would have computed on all pairs. A collective: call it on every rank or on none, with the
    group that the objective was called with; without, it warns in a job of several ranks.

    Raises:
        UserError: `loss` is not one number, or other ranks are at another call: the same line on every rank, where a
            rank that logs alone would wait for the others' next step and count into it.
    """
    check_group(group)
    if loss.numel() != 1:
        raise UserError(f"loss: one number is accepted, not {list(loss.shape)}")
    if group is None:
        warn_alone("global_value", "this rank's value is returned as it is", stacklevel=3)
    value = loss.detach().clone()
    ranks = 1 if group is None else dist.get_world_size(group)
    if ranks == 1:
        return value
    settings: dict[str, object] = {"objective": "none, but global_value"}
    whole = torch.tensor([0, _checksum(settings), 0, 0, 0, 0], device=value.device)
    number = torch.cat([value.double().reshape(1), value.new_zeros(_LEARNED - 1, dtype=torch.float64)])
    messages = _compared(torch.cat([whole, number.view(torch.int64)]), settings, None, ranks, group)
    return torch.full_like(value, sum(message.number(0) for message in messages) / ranks)


class _Message(NamedTuple):
    """What each rank tells the others: whole numbers, so that one small collective carries them."""

    refused: int
    """1: this rank's rows were refused, and the rest says nothing."""
    checksum: int = 0
    """Of all settings."""
    queries: int = 0
    candidates: int = 0
    choice: int = 0
    broken: int = 0
    """1: an embedding, a margin or a learned number is not finite."""
    learned: tuple[int, ...] = (0,) * _LEARNED
    """The bits of float64 numbers."""

    @classmethod
    def of(cls, numbers: list[int]) -> "_Message":
        """Return the message of these numbers."""
        refused, checksum, queries, candidates, choice, broken, *learned = numbers
        return cls(refused, checksum, queries, candidates, choice, broken, tuple(learned))

    def number(self, index: int) -> float:
        """Return a learned number."""
        value: float = struct.unpack("d", struct.pack("q", self.learned[index]))[0]
        return value


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
        settings = _settings_of(batch) | mine.settings
        message_X = _message(batch, mine, settings)
    except Exception as error:  # whatever it is, the others must not wait for this rank
        refused = error
        on_gpu = torch.cuda.is_available() and "nccl" in dist.get_backend(group)
        size = len(_Message._fields) - 1 + _LEARNED
        message_X = torch.zeros(size, dtype=torch.int64, device="cuda" if on_gpu else "cpu")
        message_X[0] = 1
        settings = {}
    messages = _compared(message_X, settings, refused, ranks, group)
    for index, what in enumerate(mine.learned):
        values = [message.number(index) for message in messages]
        # Machines may differ in the last bit of an exponential; parameters that are not averaged drift far apart.
        alike = all(math.isclose(value, values[0], rel_tol=1e-6, abs_tol=1e-9) for value in values)
        if not alike and all(math.isfinite(value) for value in values):
            refuse_difference(what, values, _WRAP)
    layout = RankLayout(
        [message.queries for message in messages],
        [message.candidates for message in messages],
        dist.get_rank(group),
        group,
    )
    precision = torch.promote_types(batch.queries.dtype, torch.float32)
    broken = any(message.broken for message in messages)
    nothing = torch.full((), math.nan if broken else 0.0, dtype=precision, device=batch.queries.device)
    return Agreement(batch, layout, nothing, [message.choice for message in messages])


def _compared(
    message_X: Tensor,
    settings: dict[str, object],
    refused: Exception | None,
    ranks: int,
    group: "dist.ProcessGroup | None",
) -> list[_Message]:
    """Return the message of every rank; end the call on all of them where one refused, or has other settings."""
    messages = [_Message.of(numbers) for numbers in all_gather(message_X, ranks, group).tolist()]
    if any(message.refused for message in messages):
        _refuse_together(refused, ranks, group)
    if len({message.checksum for message in messages}) > 1:
        _refuse_settings(settings, ranks, group)
    return messages


def _checksum(settings: dict[str, object]) -> int:
    digest = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _message(batch: LocalBatch, mine: Proposal, settings: dict[str, object]) -> Tensor:
    """Return the message [X] of a rank whose rows are accepted, on their device."""
    device = batch.queries.device
    learned = [torch.as_tensor(value, device=device).detach().double().reshape(1) for value in mine.learned.values()]
    learned_X = torch.cat([*learned, torch.zeros(_LEARNED - len(learned), device=device, dtype=torch.float64)])
    broken = (nothing_or_nan(batch) + (learned_X * 0).sum()).isnan().long().reshape(1)
    known = torch.tensor(
        [0, _checksum(settings), len(batch.queries), len(batch.candidates), mine.choice], device=device
    )
    return torch.cat([known, broken, learned_X.view(torch.int64)])


def _settings_of(batch: LocalBatch) -> dict[str, object]:
    sides = {"queries": batch.queries, "candidates": batch.candidates}
    return {
        "embedding size": batch.queries.shape[1],
        "bits of precision": batch.queries.element_size() * 8,
        "type of embeddings": str(batch.queries.dtype).removeprefix("torch."),
        "ids given": int(batch.ids.queries is not None),
        "text ids given": int(batch.texts is not None),
        "margins given": int(batch.margins is not None),
    } | {
        f"gradient required of {name}": int(torch.is_grad_enabled() and side.requires_grad)
        for name, side in sides.items()
    }


def _refuse_settings(settings: dict[str, object], ranks: int, group: "dist.ProcessGroup | None") -> NoReturn:
    """End the call on every rank with the first setting that differs: the objective, else by name."""
    each = _everyones(settings, ranks, group)
    names = sorted({name for one in each for name in one}, key=lambda name: (name != "objective", name))
    of_all = {name: [one.get(name) for one in each] for name in names}
    what = next(name for name, values in of_all.items() if any(value != values[0] for value in values))
    refuse_difference(what, of_all[what])


def _refuse_together(refused: Exception | None, ranks: int, group: "dist.ProcessGroup | None") -> NoReturn:
    """End the call on every rank with what the first rank that refused its rows says of them."""
    texts = _everyones(None if refused is None else str(refused), ranks, group)
    if refused is not None and not isinstance(refused, UserError):
        raise refused
    rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
    raise UserError(f"rank {rank} of the group: {text}") from refused


def _everyones(value: Any, ranks: int, group: "dist.ProcessGroup | None") -> list[Any]:
    everyone: list[Any] = [None] * ranks
    dist.all_gather_object(everyone, value, group=group)
    return everyone
