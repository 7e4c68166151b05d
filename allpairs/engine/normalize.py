"""Embeddings on the unit sphere.

Shapes: b rows, D embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_SMALLEST = 1e-12
"""A row shorter than this is divided by this instead, as torch's `normalize` does."""


def unit_rows(rows_bD: Tensor) -> Tensor:
    """Return each row divided by its length. Half precision is normalised in float32 and returned in half.

    For half precision the graph keeps the result and one number per row, not the float32 copies: O(b·D) half bytes.
    """
    if rows_bD.dtype in (torch.float16, torch.bfloat16):
        unit_bD: Tensor = _UnitRowsOfHalf.apply(rows_bD)
        return unit_bD
    return F.normalize(rows_bD, dim=1, eps=_SMALLEST)


class _UnitRowsOfHalf(torch.autograd.Function):
    """x/‖x‖, whose gradient is (g − (g·x̂)x̂)/‖x‖."""

    @staticmethod
    def forward(ctx: Any, rows_bD: Tensor) -> Tensor:
        length_b1 = torch.linalg.vector_norm(rows_bD, dim=1, keepdim=True, dtype=torch.float32).clamp(min=_SMALLEST)
        unit_bD = (rows_bD / length_b1).to(rows_bD.dtype)
        ctx.save_for_backward(unit_bD, length_b1)
        return unit_bD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_bD: Tensor) -> Tensor:
        unit_bD, length_b1 = ctx.saved_tensors
        gradient_bD = gradient_bD.float()
        along_b1 = (gradient_bD * unit_bD).sum(dim=1, keepdim=True)
        return ((gradient_bD - along_b1 * unit_bD) / length_b1).to(unit_bD.dtype)
