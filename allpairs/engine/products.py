"""Products of matrices, computed alike whatever surrounds the call: autocast, float32 shortcuts, derivatives.

Shapes: R × D and C × D the rows that are compared, R × C their scores.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from allpairs.errors import UserError

HALF = (torch.float16, torch.bfloat16)

_LIBRARIES: list[Any] = [
    products
    for library in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(products := getattr(library, "matmul", None), "fp32_precision")
]
"""What multiplies float32, by shortcuts where that is allowed (torch 2.8 cannot say so library by library)."""


@contextmanager
def as_given(like: Tensor) -> Iterator[None]:
    """Compute in the types of the operands, on the device of `like`: outside autocast, and float32 without TF32.

    A backward needs it as much as a forward: it may be called inside autocast when its forward was outside.
    """
    device_type = like.device.type if isinstance(like, Tensor) else "cpu"  # whatever else it is will be refused
    # Library by library: `get_float32_matmul_precision` raises where they were set one by one.
    shortened = [
        (library, allowed) for library in _LIBRARIES if (allowed := library.fp32_precision) in ("tf32", "bf16")
    ]
    for library, _ in shortened:
        library.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False) if is_autocast_available(device_type) else nullcontext():
            yield
    finally:
        for library, allowed in shortened:
            library.fp32_precision = allowed


def scores_of(rows_RD: Tensor, columns_CD: Tensor) -> Tensor:
    """Return `rows_RD` @ `columns_CD`ᵀ [R, C]; differentiable any number of times, each `as_given`."""
    scores_RC: Tensor = _Scores.apply(rows_RD, columns_CD)
    return scores_RC


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left` @ `right` in at least float32; without gradient."""
    if left.dtype not in HALF:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def add_product(total: Tensor, left: Tensor, right: Tensor, factor: Tensor | None = None) -> None:
    """Add `left` @ `right`, times `factor`, to `total`; products of half precision in float32."""
    if total.dtype == left.dtype:
        assert factor is None
        total.addmm_(left, right)
    elif factor is None and left.is_cuda and _adds_in_place(total.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    elif left.is_cuda or factor is not None:
        products = product(left, right)
        total.add_(products if factor is None else products.mul_(factor))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


@functools.cache
def _adds_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this torch adds products of half precision to a sum in float32 without a tensor between.

    (pytorch#167931; asked once, of numbers whose sum is known.)
    """
    total = torch.ones(16, 16, device=device)
    half = total.to(dtype)
    try:
        torch.addmm(total, half, half, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 17).all())


def to_half(weights_RC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return `weights_RC` in half precision, and the factor [] that gives their products the right size again.

    float16 holds nothing below 6e-8, where the weights of a well-separated batch lie: they are multiplied by a power
    of two that lifts the largest to 2¹³ to 2¹⁴. bfloat16 reaches as far as float32.
    """
    if dtype != torch.float16:
        return weights_RC.to(dtype), None
    largest = weights_RC.abs().amax().clamp(min=2.0**-100)
    lift = torch.frexp(largest).mantissa / largest * 2**14
    return (weights_RC * lift).to(dtype), 1 / lift


def only_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a backward that has no derivative of its own: asking for one is refused instead of found to be 0.

    (torch's `once_differentiable` returns constants where the incoming gradient is one, as it always is for a loss.)
    """

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        several = results if isinstance(results, tuple) else (results,)
        given = [tensor for tensor in (*gradients, *ctx.saved_tensors) if tensor is not None and tensor.requires_grad]
        guarded = iter(_NoDerivative.apply(len(given), *given, *(r for r in several if r is not None)))
        several = tuple(None if result is None else next(guarded) for result in several)
        return several if isinstance(results, tuple) else several[0]

    return run


class _Scores(torch.autograd.Function):
    """The product, whose derivatives are again products of its kind."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows_RD: Tensor, columns_CD: Tensor) -> Tensor:
        return rows_RD @ columns_CD.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient_RC: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows_RD, columns_CD = ctx.saved_tensors
        of_rows, of_columns = ctx.needs_input_grad
        with as_given(rows_RD):
            return (
                scores_of(gradient_RC, columns_CD.T) if of_rows else None,
                scores_of(gradient_RC.T, rows_RD.T) if of_columns else None,
            )


class _NoDerivative(torch.autograd.Function):
    """Pass on gradients [after `count` tensors that they depend on], which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[count:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise UserError(
            "the gradient of a loss was differentiated again, which only backend='dense' on one process with float32 "
            "or float64 embeddings can; accepted elsewhere: first derivatives"
        )
