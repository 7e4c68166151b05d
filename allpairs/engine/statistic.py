"""What an anchor must know about its row, as a value that can be gathered piece by piece: over tiles and over ranks.

Shapes: R anchors.
"""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Self

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
Settled = Annotated[Tensor, "same"]
"""A field that an earlier pass has settled: every part carries the same value."""

_MERGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "same": lambda mine, _: mine,
}


@dataclass(frozen=True)
class RowStatistic:
    """A statistic of R anchors: its fields are tensors [R, ...] or statistics themselves, each declared with its merge.

    The statistic of a row is that of its columns up to some column merged with that of the columns after it; a subclass
    whose fields do not merge one by one writes `merge` and `reduce` itself.
    """

    def merge(self, later: Self) -> Self:
        """Return the statistic of the columns of `self` and of `later`, which all come after them."""
        merged = []
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(later, part.name)
            nested = isinstance(mine, RowStatistic)
            merged.append(mine.merge(theirs) if nested else _MERGE[_merge_of(part)](mine, theirs))
        return type(self)(*merged)

    def reduce(self, group: "ProcessGroup | None") -> Self:
        """Return the statistic of the columns of all ranks of `group`, each calling with its own. A collective."""
        reduced = []
        for part in fields(self):
            mine = getattr(self, part.name)
            nested = isinstance(mine, RowStatistic)
            reduced.append(mine.reduce(group) if nested else _reduce(mine, _merge_of(part), group))
        return type(self)(*reduced)

    def rows(self, rows: slice) -> Self:
        """Return the statistic of some of the anchors."""
        parts = [getattr(self, part.name) for part in fields(self)]
        return type(self)(*[part.rows(rows) if isinstance(part, RowStatistic) else part[rows] for part in parts])

    @classmethod
    def join(cls, pieces: Sequence[Self]) -> Self:
        """Return the statistic of the anchors of all `pieces`, one after the other."""
        joined = []
        for part in fields(cls):
            parts = [getattr(piece, part.name) for piece in pieces]
            joined.append(type(parts[0]).join(parts) if isinstance(parts[0], RowStatistic) else torch.cat(parts))
        return cls(*joined)


def all_reduce(values: Tensor, operation: "dist.ReduceOp.RedOpType", group: "ProcessGroup | None") -> Tensor:
    """Return `values` combined over the ranks of `group`, leaving `values` alone."""
    combined = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(combined, op=operation, group=group)
    return combined


def _merge_of(part: "Field[Any]") -> str:
    merge: str = part.type.__metadata__[0]  # type: ignore[union-attr]
    return merge


def _reduce(values: Tensor, how: str, group: "ProcessGroup | None") -> Tensor:
    if how == "same":
        return values
    operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
    return all_reduce(values, operations[how], group)
