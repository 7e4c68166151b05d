"""Embeddings of one side as the engine compares them: as given, or divided by their lengths where they are used.

Unit rows of a whole half-precision batch, held from forward to backward beside the given ones, would be 4·B·D bytes of
both sides: a fifth of what the loss takes. A piece at a time they are one pass over memory each time a tile asks.

Shapes: b rows, D embedding, R rows of a piece.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-12
"""What a row of zeros is divided by, as torch's `normalize` does."""
_CHUNK = 8192
"""Rows that are held in float32 at once."""


@dataclass
class Rows:
    """b rows [b, D]; a piece of them is what `[...]` gives, without gradient."""

    given: Tensor
    """[b, D]."""
    inverse: Tensor | None = None
    """[b, 1] float32: 1/length of each row, NaN of one that is not finite; None: the rows are compared as given."""

    def __post_init__(self) -> None:
        self._last: tuple[tuple[int, int], Tensor] | None = None

    @classmethod
    def normalised(cls, given_bD: Tensor) -> "Rows":
        """Return half-precision rows that are compared as unit vectors, right for any finite length; zeros stay."""
        return cls(given_bD, inverse_lengths(given_bD))

    @property
    def dtype(self) -> torch.dtype:
        """The type in which they are compared."""
        return self.given.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.given.device

    @property
    def shape(self) -> torch.Size:
        """[b, D]."""
        return self.given.shape

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Return some rows as they are compared; the last piece is kept until the next is asked for."""
        if self.inverse is None:
            return self.given[which]
        place = None
        if isinstance(which, slice):
            place = which.indices(len(self))[:2]
            if self._last is not None and self._last[0] == place:
                return self._last[1]
            self._last = None
        part_RD = self.given[which]
        unit_RD = torch.empty_like(part_RD, memory_format=torch.contiguous_format)
        torch.mul(part_RD, self.inverse[which], out=unit_RD)  # in float32, rounded once
        if place is not None:
            self._last = place, unit_RD
        return unit_RD

    def to_given_(self, gradient_RD: Tensor, first: int = 0) -> Tensor:
        """Change in place the gradient by rows from `first` on, as they are compared, into that by the given ones.

        That is (g − (g·x̂)x̂)/‖x‖.
        """
        if self.inverse is None:
            return gradient_RD
        for start in range(0, len(gradient_RD), _CHUNK):
            stop = min(start + _CHUNK, len(gradient_RD))
            chunk = slice(first + start, first + stop)
            part_RD, unit_RD = gradient_RD[start:stop], self[chunk]
            along_R1 = (part_RD * unit_RD).sum(dim=1, keepdim=True)
            part_RD.addcmul_(unit_RD, along_R1, value=-1).mul_(self.inverse[chunk])
        return gradient_RD


def in_one_piece(rows_bD: Tensor) -> Tensor:
    """Return `rows_bD` as the copy engine of a GPU reads them: contiguous, from a multiple of 16 bytes on."""
    rows_bD = rows_bD.contiguous()
    return rows_bD.clone() if rows_bD.data_ptr() % 16 else rows_bD


@torch.no_grad()
def inverse_lengths(rows_bD: Tensor) -> Tensor:
    """Return 1/length of each half-precision row [b, 1] in float32; NaN of a row that is not finite."""
    largest_b1 = torch.maximum(rows_bD.amax(dim=1, keepdim=True), -rows_bD.amin(dim=1, keepdim=True)).float()
    factor_b1 = factor_into_range(largest_b1)
    length_b1 = torch.empty_like(factor_b1)
    for start in range(0, len(rows_bD), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        torch.linalg.vector_norm(
            rows_bD[chunk] * factor_b1[chunk], dim=1, keepdim=True, dtype=torch.float32, out=length_b1[chunk]
        )
    inverse_b1 = factor_b1 / length_b1.clamp(min=SMALLEST)
    # Finite for the shortest rows too; 0·∞ and 0·NaN are NaN.
    return inverse_b1.clamp(max=torch.finfo(torch.float32).max) + 0 * largest_b1


def factor_into_range(largest_b1: Tensor) -> Tensor:
    """Return the power of two that takes rows near 1, so that no square over- or underflows: it rounds nothing.

    `largest_b1`: the largest size of a number of each row.
    """
    finfo = torch.finfo(largest_b1.dtype)
    held_b1 = largest_b1.clamp(finfo.smallest_normal, finfo.max / 256)
    return torch.where(largest_b1 > 0, torch.frexp(held_b1).mantissa / held_b1, 1)
