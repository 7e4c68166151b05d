"""Triton kernels over one big tile of scores S = Q·Cᵀ: each program computes a small block of S and reduces it at once.

Rows and columns of a block are reduced in the block and written as partial results, one line per block of the other
direction, which the two `merge_*` kernels then join: no atomics, so the same input gives the same bits.

Matrices come as tensor descriptors (`TensorDescriptor`): on Hopper they are loaded by the copy engine, before it by
ordinary loads; both fill what lies outside with zeros, and such scores are masked like those of equal ids. Offsets into
embeddings are the descriptor's own, those into outputs are 64-bit: R·C and B·D may pass 2³¹.

Shapes: R rows (queries) and C columns (candidates) of the big tile, D embedding; BLOCK_R × BLOCK_C a block, BLOCK_D the
step along D; N anchors of either direction, K partial results of each.
"""

# Kernels are typed by how they are launched, and take their arguments by place.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: PLR0917

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

INTERPRETED = isinstance(tl.max, InterpretedFunction)
"""Whether Triton's interpreter runs these kernels: settled when Triton is imported, since tl.max is a kernel too."""

LOG2_E = tl.constexpr(1.4426950408889634)

# If all rows and columns of a block peak within this many octaves, one exponential serves both directions: what it
# flushes to zero, below 2⁻¹²⁶ of the highest, is then below 2⁻²⁶ of the largest term of any row or column.
_SHARED_OCTAVES = tl.constexpr(100.0)

_NO_INDEX = tl.constexpr(2**31 - 1)

RUN = tl.constexpr(16 if INTERPRETED else 64)
"""Items whose range of numbers is known together; see `allpairs.engine.fused.instances`."""

# A kernel is compiled once for every batch: not again for a last one whose sizes are no multiple of 16, or for a rank
# whose rows begin at an odd place.
_SIZES = ("R", "C", "K", "N", "first_row", "first_column")
_ANYWHERE = ("row_shift_R", "column_shift_C", "bias_N", "scale_1", "bias_1", "factor_1")


@triton.jit
def _block_of(row_blocks, column_blocks, GROUP: tl.constexpr):
    """Return the block of this program; consecutive programs share GROUP lines of blocks, and so what L2 holds."""
    program = tl.program_id(0)
    per_group = GROUP * column_blocks
    first = program // per_group * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    inside = program % per_group
    return first + inside % height, inside // height


@triton.jit
def _scores(
    queries,
    candidates,
    row_block,
    column_block,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Return the block's scores in float32."""
    scores = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for depth in range(0, D, BLOCK_D):
        query = queries.load([row_block * BLOCK_R, depth])
        candidate = candidates.load([column_block * BLOCK_C, depth])
        if WIDEN:
            query, candidate = query.to(tl.float32), candidate.to(tl.float32)
        # "ieee" speaks of float32 operands alone; half-precision products are exact in the float32 accumulator.
        scores = tl.dot(query, candidate.T, scores, input_precision="ieee")
    return scores


@triton.jit
def _range(ranges_G2, first, LENGTH: tl.constexpr):
    """Return the lowest and the highest number of the items of LENGTH from `first` on, by their runs."""
    run = first // RUN
    last = (first + LENGTH - 1) // RUN
    lowest = tl.load(ranges_G2 + 2 * run)
    highest = tl.load(ranges_G2 + 2 * run + 1)
    for _ in tl.static_range(LENGTH // RUN):
        run = tl.minimum(run + 1, last)
        lowest = tl.minimum(lowest, tl.load(ranges_G2 + 2 * run))
        highest = tl.maximum(highest, tl.load(ranges_G2 + 2 * run + 1))
    return lowest, highest


@triton.jit
def _overlap(range1, range2):
    return (range1[1] >= range2[0]) & (range1[0] <= range2[1])


@triton.jit
def _negative_scores(
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
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Return the block's scores in float32, −inf where the numbers are equal or outside, and its rows and columns.

    MASKED: whether two numbers of the tile can be equal at all. Ranges are single numbers, which no warp waits for.
    """
    rows = row_block * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = column_block * BLOCK_C + tl.arange(0, BLOCK_C)
    at_edge = ((row_block + 1) * BLOCK_R > R) | ((column_block + 1) * BLOCK_C > C)
    scores = _scores(queries, candidates, row_block, column_block, D, BLOCK_R, BLOCK_C, BLOCK_D, WIDEN)
    if MASKED:
        row_range = _range(query_ranges_G2, first_row + row_block * BLOCK_R, BLOCK_R)
        column_range = _range(candidate_ranges_G2, first_column + column_block * BLOCK_C, BLOCK_C)
        if _overlap(row_range, column_range) | at_edge:
            row_numbers = tl.load(query_numbers_B + first_row + rows, mask=rows < R, other=-1)
            column_numbers = tl.load(candidate_numbers_B + first_column + columns, mask=columns < C, other=-1)
            negative = (row_numbers[:, None] != column_numbers[None, :]) & (rows < R)[:, None] & (columns < C)[None, :]
            scores = tl.where(negative, scores, -float("inf"))
    elif at_edge:
        scores = tl.where((rows < R)[:, None] & (columns < C)[None, :], scores, -float("inf"))
    return scores, rows, columns


@triton.jit
def _total(scores, peak, scale2, axis: tl.constexpr):
    """Return Σ 2^(scale2·(S − peak)) along `axis`: 0 where nothing is a negative, whose peak is −inf."""
    # The difference first: scale2·S alone would carry the rounding of a large number into the exponent.
    reference = tl.where(peak == -float("inf"), 0.0, peak)
    return tl.sum(tl.exp2((scores - tl.expand_dims(reference, axis)) * scale2), axis)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ANYWHERE)
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
    row_block, column_block = _block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
    scores, rows, columns = _negative_scores(
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


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ANYWHERE)
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


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ANYWHERE)
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
    row_block, column_block = _block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
    scores, rows, columns = _negative_scores(
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


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ANYWHERE)
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


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ANYWHERE)
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
    row_block, column_block = _block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
    scores, rows, columns = _negative_scores(
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
    scores = _scores(queries, candidates, row_block, column_block, D, BLOCK_R, BLOCK_C, BLOCK_D, WIDEN)
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


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ANYWHERE)
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
    row_block, column_block = _block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
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


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ANYWHERE)
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
    row_block, column_block = _block_of(tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C), GROUP)
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
