"""Triton kernels over one big tile of scores S = Q·Cᵀ: each program computes a small block of S and reduces it at once.

Rows and columns of a block are reduced in the block and written as partial results, one line per block of the other
direction, which the two `merge_*` kernels then join: no atomics, so the same input gives the same bits.

Matrices come as tensor descriptors (`TensorDescriptor`): on Hopper they are loaded by the copy engine, before it by
ordinary loads; both fill what lies outside with zeros, and such scores are masked like those of equal ids. Offsets into
embeddings are the descriptor's own, those into outputs are 64-bit: R·C and B·D may pass 2³¹.

Shapes: R rows (queries) and C columns (candidates) of the big tile, D embedding; BLOCK_R × BLOCK_C a block, BLOCK_D the
step along D; N anchors of either direction, K partial results of each.

- `block`: what they share: a program's block, its scores, its negatives.
- `soft`, `hard`, `sigmoid`: the kernels of each kind of objective.
"""

from allpairs.engine.fused.kernels.block import INTERPRETED, RUN
from allpairs.engine.fused.kernels.hard import hardest, merge_hardest
from allpairs.engine.fused.kernels.sigmoid import sigmoid_sums, sigmoid_weights
from allpairs.engine.fused.kernels.soft import merge_excess, soft_excess, soft_weights

__all__ = [
    "INTERPRETED",
    "RUN",
    "hardest",
    "merge_excess",
    "merge_hardest",
    "sigmoid_sums",
    "sigmoid_weights",
    "soft_excess",
    "soft_weights",
]
