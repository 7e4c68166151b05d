"""Soft maxima over negatives: peaks and sums of powers, joined, and the weights of their gradient."""

# Kernels are typed by how they are launched, and take their arguments by place.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: PLR0917

import triton
import triton.language as tl

from allpairs.engine.fused.kernels.block import ANYWHERE, LOG2_E, SIZES, block_of, negative_scores

# If all rows and columns of a block peak within this many octaves, one exponential serves both directions: what it
# flushes to zero, below 2⁻¹²⁶ of the highest, is then below 2⁻²⁶ of the largest term of any row or column.
_SHARED_OCTAVES = tl.constexpr(100.0)


@triton.jit
def _total(scores, peak, scale2, axis: tl.constexpr):
    """Return Σ 2^(scale2·(S − peak)) along `axis`: 0 where nothing is a negative, whose peak is −inf."""
    # The difference first: scale2·S alone would carry the rounding of a large number into the exponent.
    reference = tl.where(peak == -float("inf"), 0.0, peak)
    return tl.sum(tl.exp2((scores - tl.expand_dims(reference, axis)) * scale2), axis)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ANYWHERE)
def soft_excess(
    queries,
    candidates,
    query_numbers_B,
    query_ranges_G2,
    candidate_numbers_B,
    candidate_ranges_G2,
    first_row,
    first_column,
    row_peaks_KR,
    row_totals_KR,
    column_peaks_KC,
    column_totals_KC,
    scale_1,
    R,
    C,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    WIDEN: tl.constexpr,
    MASKED: tl.constexpr,
    SHARE: tl.constexpr,
):
    """Write m = max S and Σ 2^(scale2·(S − m)) over the negatives of every row and column of every block.

    SHARE: one exponential per score, counted from the block's peak, where all rows and columns peak near it; else two,
    each exact for its direction. By their throughputs, Hopper's special-function units need a third of the time of the
    products (D = 768) for two.
    """
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
    scale2 = tl.load(scale_1) * LOG2_E
    row_peak = tl.max(scores, 1)
    column_peak = tl.max(scores, 0)
    shared = False
    highest = 0.0
    if SHARE:
        highest = tl.max(row_peak, 0)
        lowest = tl.minimum(tl.min(row_peak, 0), tl.min(column_peak, 0))
        # Infinite or NaN, and so false, if some row or column has no negative.
        shared = (highest - lowest) * scale2 <= _SHARED_OCTAVES
    if shared:
        powers = tl.exp2((scores - highest) * scale2)
        row_total = tl.sum(powers, 1) * tl.exp2((highest - row_peak) * scale2)
        column_total = tl.sum(powers, 0) * tl.exp2((highest - column_peak) * scale2)
    else:
        row_total = _total(scores, row_peak, scale2, 1)
        column_total = _total(scores, column_peak, scale2, 0)
    of_rows = column_block.to(tl.int64) * R + rows
    of_columns = row_block.to(tl.int64) * C + columns
    tl.store(row_peaks_KR + of_rows, row_peak, mask=rows < R)
    tl.store(row_totals_KR + of_rows, row_total, mask=rows < R)
    tl.store(column_peaks_KC + of_columns, column_peak, mask=columns < C)
    tl.store(column_totals_KC + of_columns, column_total, mask=columns < C)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ANYWHERE)
def merge_excess(
    peaks_KN,
    totals_KN,
    bias_N,
    peak_N,
    total_N,
    scale_1,
    K,
    N,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Join partial results, and count exponents from bias: peak = max(0, scale·m − bias), total = Σ e^(x − peak)."""
    scale = tl.load(scale_1)
    scale2 = scale * LOG2_E
    anchors = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = anchors < N
    peak = tl.full((BLOCK_N,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        parts = first + tl.arange(0, BLOCK_K)
        offsets = parts.to(tl.int64)[:, None] * N + anchors[None, :]
        present = (parts < K)[:, None] & inside[None, :]
        peaks = tl.load(peaks_KN + offsets, mask=present, other=-float("inf"))
        totals = tl.load(totals_KN + offsets, mask=present, other=0.0)
        higher = tl.maximum(peak, tl.max(peaks, 0))
        reference = tl.where(higher == -float("inf"), 0.0, higher)
        added = tl.sum(totals * tl.exp2((peaks - reference[None, :]) * scale2), 0)
        total = total * tl.exp2((peak - reference) * scale2) + added
        peak = higher
    highest = peak * scale - tl.load(bias_N + anchors, mask=inside, other=0.0)
    excess = tl.maximum(highest, 0.0)
    # e^0 = 1 unless all exponents are negative.
    total = total * tl.exp2((highest - excess) * LOG2_E)
    tl.store(peak_N + anchors, excess, mask=inside)
    tl.store(total_N + anchors, total, mask=inside)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=ANYWHERE)
def soft_weights(
    queries,
    candidates,
    query_numbers_B,
    query_ranges_G2,
    candidate_numbers_B,
    candidate_ranges_G2,
    first_row,
    first_column,
    row_shift_R,
    column_shift_C,
    out_RC,
    scale_1,
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
    SHARE: tl.constexpr,
):
    """Write e^(scale·S − row_shift) + e^(scale·S − column_shift) on negatives, 0 elsewhere.

    SHARE: as e^(scale·S − t)·(e^(t − row_shift) + e^(t − column_shift)), t the block's lowest shift, where the block's
    shifts allow it: one exponential per score. Exponents of at most ~0 keep all factors in range.
    """
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
    scale = tl.load(scale_1)
    row_shift = tl.load(row_shift_R + rows, mask=rows < R, other=0.0)
    column_shift = tl.load(column_shift_C + columns, mask=columns < C, other=0.0)
    shared = False
    lowest = 0.0
    if SHARE:
        lowest = tl.minimum(tl.min(row_shift, 0), tl.min(column_shift, 0))
        highest = tl.maximum(tl.max(row_shift, 0), tl.max(column_shift, 0))
        shared = (highest - lowest) * LOG2_E <= _SHARED_OCTAVES
    if shared:
        of_row = tl.exp2((lowest - row_shift) * LOG2_E)
        of_column = tl.exp2((lowest - column_shift) * LOG2_E)
        powers = tl.exp2((scores * scale - lowest) * LOG2_E)
        weights = powers * (of_row[:, None] + of_column[None, :])
    else:
        of_rows = tl.exp2((scores * scale - row_shift[:, None]) * LOG2_E)
        weights = of_rows + tl.exp2((scores * scale - column_shift[None, :]) * LOG2_E)
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.store(out_RC + offsets, weights.to(out_RC.dtype.element_ty), mask=(rows < R)[:, None] & (columns < C)[None, :])
