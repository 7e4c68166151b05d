"""What the engine asks of one big tile of scores S = Q·Cᵀ, computed without holding S.

A column is a negative of a row iff they are of different instances. Sums and products run in float32, with full float32
products for float32 embeddings. Nothing is left to the order of threads: the same input gives the same bits. Nothing
waits for the device.

Shapes: R rows (queries), C columns (candidates), D embedding, a multiple of 16; N anchors of either direction, K blocks
of the other. Embeddings are contiguous, of one type of `fused.DTYPES` and aligned to 16 bytes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv
from triton.tools.tensor_descriptor import TensorDescriptor

from allpairs.engine.fused import DTYPES, kernels
from allpairs.engine.fused.instances import Instances
from allpairs.engine.fused.launch_table import INTERPRETED, Launch, launch_on


class Operands(NamedTuple):
    """What a tile compares."""

    queries: Tensor
    """[R, D]"""
    candidates: Tensor
    """[C, D]"""
    query_instances: Instances
    """Of all queries."""
    candidate_instances: Instances
    """Of all candidates."""
    first_row: int
    """Where the R queries begin among all."""
    first_column: int
    masked: bool
    """Whether a query of the tile can be of one instance with a candidate of it: else nothing asks for instances."""


_MERGED_PARTS, _MERGED_ANCHORS = 32, 64
"""What a program of the merging kernels holds at once."""


def launch_for(embeddings: Tensor, kernel: str) -> Launch:
    """Return the launch of `kernel` for the type and device of `embeddings`."""
    if kernels.INTERPRETED:
        return INTERPRETED
    return launch_on(torch.cuda.get_device_capability(embeddings.device)[0], embeddings.dtype, kernel)


def soft_excess(
    operands: Operands,
    *,
    scale: Tensor,
    row_bias_R: Tensor,
    column_bias_C: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return row_peak [R], row_total [R], column_peak [C], column_total [C], float32.

    Of a row: x_ij = scale·S_ij − row_bias_i over its negatives j, peak_i = max(0, max_j x_ij) and total_i =
    Σ_j e^(x_ij − peak_i); 0 and 0 where there is none. Of a column: the same over i, with column_bias_j. `scale`
    [1] > 0 and biases are float32.
    """
    call = _Call(kernels.soft_excess, operands)
    row_blocks, column_blocks = call.launch.blocks(call.size)
    rows, columns = (column_blocks, len(operands.queries)), (row_blocks, len(operands.candidates))
    row_peaks_KR, row_totals_KR = (operands.queries.new_empty(rows, dtype=torch.float32) for _ in range(2))
    column_peaks_KC, column_totals_KC = (operands.queries.new_empty(columns, dtype=torch.float32) for _ in range(2))
    with call.device:
        call.run(
            (row_peaks_KR, row_totals_KR, column_peaks_KC, column_totals_KC, scale),
            SHARE=call.half,
        )
        row_peak_R, row_total_R = _merge_excess(row_peaks_KR, row_totals_KR, row_bias_R, scale)
        column_peak_C, column_total_C = _merge_excess(column_peaks_KC, column_totals_KC, column_bias_C, scale)
    return row_peak_R, row_total_R, column_peak_C, column_total_C


def hardest(operands: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return row_value [R] float32, row_column [R] int64, column_value [C] and column_row [C].

    The highest score among an anchor's negatives and the lowest index within the tile that holds it; −inf and 0 where
    it has none.
    """
    call = _Call(kernels.hardest, operands)
    row_blocks, column_blocks = call.launch.blocks(call.size)
    rows, columns = (column_blocks, len(operands.queries)), (row_blocks, len(operands.candidates))
    row_values_KR, column_values_KC = (
        operands.queries.new_empty(size, dtype=torch.float32) for size in (rows, columns)
    )
    row_columns_KR, column_rows_KC = (operands.queries.new_empty(size, dtype=torch.int32) for size in (rows, columns))
    with call.device:
        call.run((row_values_KR, row_columns_KR, column_values_KC, column_rows_KC))
        row_value_R, row_column_R = _merge_hardest(row_values_KR, row_columns_KR)
        column_value_C, column_row_C = _merge_hardest(column_values_KC, column_rows_KC)
    return row_value_R, row_column_R, column_value_C, column_row_C


def soft_weights(
    operands: Operands,
    *,
    scale: Tensor,
    row_shift_R: Tensor,
    column_shift_C: Tensor,
    out: Tensor,
) -> None:
    """Write into `out` [R, C]: e^(scale·S_ij − row_shift_i) + e^(scale·S_ij − column_shift_j) on negatives, else 0.

    `out`: half precision or float32, columns contiguous, any distance between rows. Both exponents are to be at most
    ~0: with half-precision embeddings one exponential serves both where the shifts lie near each other, and could
    overflow otherwise. Shifts are float32; +inf leaves a direction of an anchor out.
    """
    call = _Call(kernels.soft_weights, operands)
    assert out.shape == call.size
    assert out.stride(1) == 1 or out.shape[1] == 1
    with call.device:
        call.run(
            (row_shift_R.contiguous(), column_shift_C.contiguous(), out, scale, out.stride(0)),
            SHARE=call.half,
        )


def sigmoid_sums(
    operands: Operands,
    *,
    scale: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return row_total [R], row_slope [R], column_total [C], column_slope [C], float32.

    With y_ij = −z_ij(scale·S_ij + bias), z = 1 where the ids are equal, else −1: Σ_j log(1 + e^{y_ij}) of a row and
    Σ_j −z_ij·σ(y_ij), its derivative by the bias; of a column the same over i.
    """
    call = _Call(kernels.sigmoid_sums, operands)
    row_blocks, column_blocks = call.launch.blocks(call.size)
    rows, columns = (2, column_blocks, len(operands.queries)), (2, row_blocks, len(operands.candidates))
    of_rows_2KR, of_columns_2KC = (operands.queries.new_empty(size, dtype=torch.float32) for size in (rows, columns))
    with call.device:
        call.run((*of_rows_2KR, *of_columns_2KC, scale, bias))
    return *of_rows_2KR.sum(dim=1), *of_columns_2KC.sum(dim=1)


def sigmoid_weights(
    operands: Operands,
    *,
    scale: Tensor,
    bias: Tensor,
    factor: Tensor,
    out: Tensor,
) -> None:
    """Write factor·(−z_ij·σ(y_ij)) into `out` [R, C], with z and y as of `sigmoid_sums`, `out` as of `soft_weights`."""
    call = _Call(kernels.sigmoid_weights, operands)
    assert out.shape == call.size
    assert out.stride(1) == 1 or out.shape[1] == 1
    with call.device:
        call.run((out, scale, bias, factor, out.stride(0)))


class _Call:
    """One launch of a kernel over all blocks of a big tile."""

    def __init__(self, kernel: Any, operands: Operands) -> None:
        queries_RD, candidates_CD, of_queries, of_candidates, *first, masked = operands
        assert queries_RD.dtype == candidates_CD.dtype
        assert queries_RD.dtype in DTYPES
        assert queries_RD.is_contiguous()
        assert candidates_CD.is_contiguous()
        self.kernel = kernel
        self.size = (len(queries_RD), len(candidates_CD))
        self.depth = queries_RD.shape[1]
        assert self.depth % 16 == 0
        self.launch = launch_for(queries_RD, kernel.__name__)
        self.half = queries_RD.dtype != torch.float32
        self.masked = masked
        self.device: AbstractContextManager[Any] = nullcontext()
        if queries_RD.is_cuda:  # Triton launches on the current device, whatever the tensors'
            self.device = torch.cuda.device(queries_RD.device)
        self.inputs = (
            TensorDescriptor.from_tensor(queries_RD, [self.launch.rows, self.launch.depth]),
            TensorDescriptor.from_tensor(candidates_CD, [self.launch.columns, self.launch.depth]),
            *of_queries,
            *of_candidates,
            *first,
        )

    def run(self, arguments: tuple[Any, ...], **constants: bool) -> None:
        """Run the kernel over all blocks, its own `arguments` between the inputs and the sizes."""
        row_blocks, column_blocks = self.launch.blocks(self.size)
        self.kernel[(row_blocks * column_blocks,)](
            *self.inputs,
            *arguments,
            *self.size,
            self.depth,
            BLOCK_R=self.launch.rows,
            BLOCK_C=self.launch.columns,
            BLOCK_D=self.launch.depth,
            GROUP=self.launch.group,
            # The interpreter multiplies bfloat16 as the integers it stores them in.
            WIDEN=kernels.INTERPRETED,
            MASKED=self.masked,
            num_warps=self.launch.warps,
            num_stages=self.launch.stages,
            **constants,
        )


def _merge_excess(peaks_KN: Tensor, totals_KN: Tensor, bias_N: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    parts, anchors = peaks_KN.shape
    peak_N, total_N = torch.empty_like(peaks_KN[0]), torch.empty_like(peaks_KN[0])
    kernels.merge_excess[(cdiv(anchors, _MERGED_ANCHORS),)](
        peaks_KN,
        totals_KN,
        bias_N.contiguous(),
        peak_N,
        total_N,
        scale,
        parts,
        anchors,
        BLOCK_K=_MERGED_PARTS,
        BLOCK_N=_MERGED_ANCHORS,
    )
    return peak_N, total_N


def _merge_hardest(values_KN: Tensor, indices_KN: Tensor) -> tuple[Tensor, Tensor]:
    parts, anchors = values_KN.shape
    value_N, index_N = torch.empty_like(values_KN[0]), torch.empty_like(indices_KN[0], dtype=torch.int64)
    kernels.merge_hardest[(cdiv(anchors, _MERGED_ANCHORS),)](
        values_KN,
        indices_KN,
        value_N,
        index_N,
        parts,
        anchors,
        BLOCK_K=_MERGED_PARTS,
        BLOCK_N=_MERGED_ANCHORS,
    )
    return value_N, index_N
