"""The hardest negative of every row and column, and which it is."""

# Kernels are typed by how they are launched, and take their arguments by place.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: PLR0917

import triton
import triton.language as tl

from allpairs.engine.fused.kernels.block import ANYWHERE, SIZES, block_of, negative_scores

_NO_INDEX = tl.constexpr(2**31 - 1)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ANYWHERE)
def hardest(
    queries,
    candidates,
    query_numbers_B,
    query_ranges_G2,
    candidate_numbers_B,
    candidate_ranges_G2,
    first_row,
    first_column,
    row_values_KR,
    row_columns_KR,
    column_values_KC,
    column_rows_KC,
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
    """Write the highest negative of every row and column of every block, and the lowest index that holds it."""
    row_block, column_block = block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
    scores, rows, columns = negative_scores(
        queries,
        candidates,
        query_numbers_B,
        query_ranges_G2,
        candidate_numbers_B,
        candidate_ranges_G2,
        first_row,
        first_column,
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
    row_value = tl.max(scores, 1)
    row_column = tl.min(tl.where(scores == row_value[:, None], columns[None, :], _NO_INDEX), 1)
    column_value = tl.max(scores, 0)
    column_row = tl.min(tl.where(scores == column_value[None, :], rows[:, None], _NO_INDEX), 0)
    of_rows = column_block.to(tl.int64) * R + rows
    of_columns = row_block.to(tl.int64) * C + columns
    tl.store(row_values_KR + of_rows, row_value, mask=rows < R)
    tl.store(row_columns_KR + of_rows, row_column, mask=rows < R)
    tl.store(column_values_KC + of_columns, column_value, mask=columns < C)
    tl.store(column_rows_KC + of_columns, column_row, mask=columns < C)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ANYWHERE)
def merge_hardest(
    values_KN,
    indices_KN,
    value_N,
    index_N,
    K,
    N,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Join partial results; −inf and index 0 where there is no negative. A score that is NaN is passed over."""
    anchors = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = anchors < N
    value = tl.full((BLOCK_N,), -float("inf"), dtype=tl.float32)
    index = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for first in range(0, K, BLOCK_K):
        parts = first + tl.arange(0, BLOCK_K)
        offsets = parts.to(tl.int64)[:, None] * N + anchors[None, :]
        present = (parts < K)[:, None] & inside[None, :]
        values = tl.load(values_KN + offsets, mask=present, other=-float("inf"))
        indices = tl.load(indices_KN + offsets, mask=present, other=_NO_INDEX)
        higher = tl.max(values, 0)
        where = tl.min(tl.where(values == higher[None, :], indices, _NO_INDEX), 0)
        # Parts come in the order of their indices, so an equal value later never has a lower one.
        better = higher > value
        value = tl.where(better, higher, value)
        index = tl.where(better, where, index)
    tl.store(value_N + anchors, value, mask=inside)
    tl.store(index_N + anchors, index.to(tl.int64), mask=inside)
