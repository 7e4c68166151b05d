"""What an anchor must know about its row, as values that can be gathered piece by piece: over tiles and over ranks.

Each statistic is of size O(R), whatever the number of columns. Masked columns come in as −inf; a row may consist of
nothing else.

Shapes: R anchors, C columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from inspect import get_annotations
from typing import TYPE_CHECKING, Annotated, Any, Self, get_origin

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Summed = Annotated[Tensor, "sum"]
"""A field whose parts are added."""
Highest = Annotated[Tensor, "max"]
"""A field of which the highest part stays."""
Lowest = Annotated[Tensor, "min"]
"""A field of which the lowest part stays."""

_MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


@dataclass(frozen=True)
class RowStatistic:
    """A statistic of R anchors: its fields are tensors [R, ...] or statistics themselves, each declared with its merge.

    The statistic of a row is that of its columns up to some column merged with that of the columns after it. A subclass
    declares how each field merges (`Summed`, `Highest`, `Lowest`, or another statistic), or writes `merge` and `reduce`
    itself where fields do not merge one by one; one that does neither fails when its class is made. It has one type in
    all passes: what a later pass finds is neutral (0, or where it counts −inf) before.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if {"merge", "reduce"} <= cls.__dict__.keys():
            return
        if inherited := {"merge", "reduce"} & cls.__dict__.keys():
            raise TypeError(f"{cls.__name__} writes {inherited.pop()} alone; merge and reduce belong together")
        for name, declared in get_annotations(cls).items():
            is_statistic = isinstance(declared, type) and issubclass(declared, RowStatistic)
            merge = getattr(declared, "__metadata__", (None,))[0] if get_origin(declared) is Annotated else None
            if not is_statistic and merge not in _MERGES:
                raise TypeError(
                    f"{cls.__name__}.{name} does not say how it merges: declare it Summed, Highest, Lowest or a "
                    "RowStatistic, or write merge and reduce"
                )

    def merge(self, later: Self) -> Self:
        """Return the statistic of the columns of `self` and of `later`, which all come after them."""
        merged = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(later, field.name)
            nested = isinstance(mine, RowStatistic)
            merged.append(mine.merge(theirs) if nested else _MERGES[_merge_of(field)](mine, theirs))
        return type(self)(*merged)

    def reduce(self, group: "ProcessGroup | None") -> Self:
        """Return the statistic of the columns of all ranks of `group`, each calling with its own. A collective."""
        operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
        reduced = []
        for field in fields(self):
            mine = getattr(self, field.name)
            nested = isinstance(mine, RowStatistic)
            reduced.append(mine.reduce(group) if nested else all_reduce(mine, operations[_merge_of(field)], group))
        return type(self)(*reduced)

    def rows(self, rows: slice) -> Self:
        """Return the statistic of some of the anchors."""
        values = [getattr(self, field.name) for field in fields(self)]
        return type(self)(*[value.rows(rows) if isinstance(value, RowStatistic) else value[rows] for value in values])

    @classmethod
    def join(cls, pieces: Sequence[Self]) -> Self:
        """Return the statistic of the anchors of all `pieces`, one after the other."""
        joined = []
        for field in fields(cls):
            values = [getattr(piece, field.name) for piece in pieces]
            joined.append(type(values[0]).join(values) if isinstance(values[0], RowStatistic) else torch.cat(values))
        return cls(*joined)


def all_reduce(values: Tensor, operation: "dist.ReduceOp.RedOpType", group: "ProcessGroup | None") -> Tensor:
    """Return `values` combined over the ranks of `group`, leaving `values` alone."""
    combined = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(combined, op=operation, group=group)
    return combined


def _merge_of(field: "Field[Any]") -> str:
    merge: str = field.type.__metadata__[0]  # type: ignore[union-attr]
    return merge


@dataclass(frozen=True)
class HardestNegative(RowStatistic):
    """The maximum of a row and the lowest column that holds it."""

    value: Tensor
    """[R]; −inf for an anchor without negatives."""
    column: Tensor
    """[R] int64, global."""

    @classmethod
    def of(cls, masked_RC: Tensor, first_column: int) -> "HardestNegative":
        """Return the hardest negative of each row; the gradient of `value` goes to that one column."""
        value_R, column_R = masked_RC.max(dim=1)  # documented to return the first of equal maxima, on every device
        return cls(value_R, column_R + first_column)

    def merge(self, later: "HardestNegative") -> "HardestNegative":
        """Return the harder of two; on a tie the earlier column stays."""
        harder_R = later.value > self.value
        return HardestNegative(
            torch.where(harder_R, later.value, self.value), torch.where(harder_R, later.column, self.column)
        )

    def reduce(self, group: "ProcessGroup | None") -> "HardestNegative":
        """Return the hardest over all ranks; on a tie the lowest global column."""
        value_R = all_reduce(self.value, dist.ReduceOp.MAX, group)
        beaten_R = self.value < value_R
        column_R = self.column.masked_fill(beaten_R, torch.iinfo(torch.int64).max)
        return HardestNegative(value_R, all_reduce(column_R, dist.ReduceOp.MIN, group))

    def exists(self) -> Tensor:
        """Return which anchors [R] have a negative at all."""
        return self.value > -torch.inf


@dataclass(frozen=True)
class HingeSum(RowStatistic):
    """The sum of a row's positive parts and the number of entries that are positive."""

    total: Summed
    """[R]: Σ_j [x_ij]+."""
    active: Summed
    """[R] int64: #{ j : x_ij > 0 }."""

    @classmethod
    def of(cls, masked_RC: Tensor) -> "HingeSum":
        """Return the sum of hinges of each row."""
        return cls(masked_RC.relu().sum(dim=1), (masked_RC > 0).sum(dim=1))


@dataclass(frozen=True)
class SumOfExponentials(RowStatistic):
    """Σ_j e^{x_ij} of a row, kept as a peak and a sum relative to it so that nothing overflows."""

    peak: Tensor
    """[R], detached: no value depends on it. At least the lowest finite number, for a row of −inf."""
    total: Tensor
    """[R]: Σ_j e^{x_ij − peak_i}."""

    @classmethod
    def of(cls, masked_RC: Tensor, least_peak: float | None = None) -> "SumOfExponentials":
        """Return the statistic of each row. `least_peak`: what the peak does not fall below."""
        floor = torch.finfo(masked_RC.dtype).min if least_peak is None else least_peak
        peak_R = masked_RC.detach().amax(dim=1).clamp(min=floor)
        return cls(peak_R, (masked_RC - peak_R[:, None]).exp().sum(dim=1))

    def merge(self, later: "SumOfExponentials") -> "SumOfExponentials":
        """Return the sum of both, relative to the higher peak."""
        peak_R = torch.maximum(self.peak, later.peak)
        return type(self)(peak_R, self._total_at(peak_R) + later._total_at(peak_R))

    def reduce(self, group: "ProcessGroup | None") -> "SumOfExponentials":
        """Return the sum over all ranks."""
        peak_R = all_reduce(self.peak, dist.ReduceOp.MAX, group)
        return type(self)(peak_R, all_reduce(self._total_at(peak_R), dist.ReduceOp.SUM, group))

    def log(self) -> Tensor:
        """Return log Σ_j e^{x_ij} [R]; −inf, with gradient 0, for a row of −inf."""
        some_R = self.total > 0
        return torch.where(some_R, self.peak + self.total.where(some_R, 1).log(), -torch.inf)

    def share(self, masked_RC: Tensor) -> Tensor:
        """Return e^{x_ij} / Σ_k e^{x_ik} [R, C], the derivative of `log`; 0 in a row of −inf."""
        log_R = self.log().masked_fill(self.total == 0, 0)
        return (masked_RC - log_R[:, None]).exp()

    def _total_at(self, peak_R: Tensor) -> Tensor:
        return self.total * (self.peak - peak_R).exp()


class SoftExcess(SumOfExponentials):
    """log(1 + Σ_j e^{x_ij}) of a row.

    The peak is max(0, max_j x_ij): the 1 takes part in it, so a row of −inf needs no special case.
    """

    @classmethod
    def of(cls, masked_RC: Tensor, least_peak: float | None = 0) -> "SoftExcess":
        """Return the statistic of each row."""
        summed = SumOfExponentials.of(masked_RC, least_peak)
        return cls(summed.peak, summed.total)

    def value(self) -> Tensor:
        """Return log(1 + Σ_j e^{x_ij}) [R], to full precision also when the sum is far below 1."""
        return self.peak + torch.log1p(torch.expm1(-self.peak) + self.total)

    def share(self, masked_RC: Tensor) -> Tensor:
        """Return p_ij = e^{x_ij} / (1 + Σ_k e^{x_ik}) [R, C], the derivative of the value."""
        return (masked_RC - self.value()[:, None]).exp()

    def share_of_all(self) -> Tensor:
        """Return Σ_j p_ij [R]."""
        return self.total / (torch.exp(-self.peak) + self.total)
