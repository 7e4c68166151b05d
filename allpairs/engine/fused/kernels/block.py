"""What the kernels share: which block is a program's, its scores, and which of them are negatives."""

# Kernels are typed by how they are launched, and take their arguments by place.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: PLR0917

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

INTERPRETED = isinstance(tl.max, InterpretedFunction)
"""Whether Triton's interpreter runs these kernels: settled when Triton is imported, since tl.max is a kernel too."""

LOG2_E = tl.constexpr(1.4426950408889634)

RUN = tl.constexpr(16 if INTERPRETED else 64)
"""Items whose range of numbers is known together; see `allpairs.engine.fused.instances`."""

# A kernel is compiled once for every batch: not again for a last one whose sizes are no multiple of 16, or for a rank
# whose rows begin at an odd place.
SIZES = ("R", "C", "K", "N", "first_row", "first_column")
ANYWHERE = ("row_shift_R", "column_shift_C", "bias_N", "scale_1", "bias_1", "factor_1")


@triton.jit
def block_of(row_blocks, column_blocks, GROUP: tl.constexpr):
    """Return the block of this program; consecutive programs share GROUP lines of blocks, and so what L2 holds."""
    program = tl.program_id(0)
    per_group = GROUP * column_blocks
    first = program // per_group * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    inside = program % per_group
    return first + inside % height, inside // height


@triton.jit
def scores_of(
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
def negative_scores(
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
    scores = scores_of(queries, candidates, row_block, column_block, D, BLOCK_R, BLOCK_C, BLOCK_D, WIDEN)
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
