"""The sigmoid cost of every pair: sums along rows and columns, and its slopes."""

# Kernels are typed by how they are launched, and take their arguments by place.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: PLR0917

import triton
import triton.language as tl

from allpairs.engine.fused.kernels.block import ANYWHERE, LOG2_E, SIZES, block_of, scores_of


@triton.jit
def _costs(
    queries,
    candidates,
    query_numbers_B,
    query_ranges_G2,
    candidate_numbers_B,
    candidate_ranges_G2,
    first_row,
    first_column,
    scale_1,
    bias_1,
    row_block,
    column_block,
    R,
    C,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Return of the block's pairs y = −z·(scale·S + bias), e^−|y|, the slope −z·σ(y) by S, and its rows and columns.

    z = 1 where the numbers are equal, else −1; outside the slope is 0 and y = −inf. MASKED: whether any can be equal.
    """
    rows = row_block * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = column_block * BLOCK_C + tl.arange(0, BLOCK_C)
    if MASKED:  # asked for before the products: later there would be no registers left for them
        row_numbers = tl.load(query_numbers_B + first_row + rows, mask=rows < R, other=-1)
        column_numbers = tl.load(candidate_numbers_B + first_column + columns, mask=columns < C, other=-1)
    scores = scores_of(queries, candidates, row_block, column_block, D, BLOCK_R, BLOCK_C, BLOCK_D, WIDEN)
    y = scores * tl.load(scale_1) + tl.load(bias_1)
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    if MASKED:
        sign = tl.where(row_numbers[:, None] == column_numbers[None, :], -1.0, 1.0)
        y = tl.where(inside, sign * y, -float("inf"))
        power = tl.exp2(-tl.abs(y) * LOG2_E)
        slope = sign * (tl.where(y >= 0, 1.0, power) / (1.0 + power))
    else:
        y = tl.where(inside, y, -float("inf"))
        power = tl.exp2(-tl.abs(y) * LOG2_E)
        slope = tl.where(y >= 0, 1.0, power) / (1.0 + power)
    return y, power, slope, rows, columns


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ANYWHERE)
def sigmoid_sums(
    queries,
    candidates,
    query_numbers_B,
    query_ranges_G2,
    candidate_numbers_B,
    candidate_ranges_G2,
    first_row,
    first_column,
    row_totals_KR,
    row_slopes_KR,
    column_totals_KC,
    column_slopes_KC,
    scale_1,
    bias_1,
    R,
    C,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    WIDEN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Write Σ log(1 + e^y) over the pairs of every row and column of every block, and the sums of its slopes by S."""
    row_block, column_block = block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
    y, power, slope, rows, columns = _costs(
        queries,
        candidates,
        query_numbers_B,
        query_ranges_G2,
        candidate_numbers_B,
        candidate_ranges_G2,
        first_row,
        first_column,
        scale_1,
        bias_1,
        row_block,
        column_block,
        R,
        C,
        D,
        BLOCK_R,
        BLOCK_C,
        BLOCK_D,
        WIDEN,
        MASKED,
    )
    # log(1 + p) to full precision for small p too: the rounding of 1 + p is divided out (Kahan).
    sum_1 = 1.0 + power
    rounded = sum_1 - 1.0
    log1p = tl.where(rounded == 0, power, tl.log(sum_1) * (power / tl.where(rounded == 0, 1.0, rounded)))
    cost = tl.maximum(y, 0.0) + log1p
    of_rows = column_block.to(tl.int64) * R + rows
    of_columns = row_block.to(tl.int64) * C + columns
    tl.store(row_totals_KR + of_rows, tl.sum(cost, 1), mask=rows < R)
    tl.store(row_slopes_KR + of_rows, tl.sum(slope, 1), mask=rows < R)
    tl.store(column_totals_KC + of_columns, tl.sum(cost, 0), mask=columns < C)
    tl.store(column_slopes_KC + of_columns, tl.sum(slope, 0), mask=columns < C)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ANYWHERE)
def sigmoid_weights(
    queries,
    candidates,
    query_numbers_B,
    query_ranges_G2,
    candidate_numbers_B,
    candidate_ranges_G2,
    first_row,
    first_column,
    out_RC,
    scale_1,
    bias_1,
    factor_1,
    row_stride,
    R,
    C,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    WIDEN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Write factor times the slope of each pair's log(1 + e^y) by S."""
    row_block, column_block = block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
    _, _, slope, rows, columns = _costs(
        queries,
        candidates,
        query_numbers_B,
        query_ranges_G2,
        candidate_numbers_B,
        candidate_ranges_G2,
        first_row,
        first_column,
        scale_1,
        bias_1,
        row_block,
        column_block,
        R,
        C,
        D,
        BLOCK_R,
        BLOCK_C,
        BLOCK_D,
        WIDEN,
        MASKED,
    )
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    weights = (slope * tl.load(factor_1)).to(out_RC.dtype.element_ty)
    tl.store(out_RC + offsets, weights, mask=(rows < R)[:, None] & (columns < C)[None, :])
