"""Gradients of objectives whose anchors look at two columns each, their hardest negative and their own pair: O(B·D).

The scores are not looked at again: where a full weight matrix costs three more products of B²·D, this costs none.

Shapes: b local pairs, B pairs of all ranks, D embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from allpairs.engine.contract import SparseWeights
from allpairs.engine.exchange import RankLayout
from allpairs.engine.rows import Rows

_CHUNK = 8192
"""Anchors at a time, so that gathered embeddings stay small beside the gradients."""


class Gradients(NamedTuple):
    """What backward finds, but for the sum over the ranks."""

    queries: Tensor
    """[b, D] in the type of the embeddings: of this rank's queries."""
    candidates: Tensor
    """[B, D] in at least float32: this rank's part of all candidates'."""
    along_queries: Tensor
    """[] in at least float32: Σ_i q_i·∂L/∂q_i but for the scale, which is the gradient of a learned scale."""


class UnequalFactors(NamedTuple):
    """The incoming gradients of ranks that do not all backpropagate the same: an anchor's is that of its owner."""

    own: Tensor
    """[]: of this rank, and so of its queries."""
    of_candidates: Tensor
    """[B]: of all candidates."""


class Factors(NamedTuple):
    """What the sums are multiplied by."""

    loss: Tensor
    """[]: the incoming gradient times what makes a sum of anchors the loss."""
    scale: Tensor | float
    """The factor on every score: ∂S_ij/∂q_i = scale·c_j."""
    column: float = 1.0
    """What the candidates' weights are multiplied by beside the queries': the means of unequal numbers."""
    unequal: "UnequalFactors | None" = None
    """What came in on each rank, if that is not the same on all; `loss` then leaves it out."""


class BothDirections(NamedTuple):
    """The weights of both sides' anchors."""

    of_rows: SparseWeights
    """Of this rank's queries [b]."""
    of_columns: SparseWeights
    """Of all candidates [B]."""


def gradients(
    queries_bD: Rows, candidates_BD: Rows, layout: RankLayout, weights: BothDirections, factors: Factors
) -> Gradients:
    """Return the gradient of this rank's queries and this rank's part of that of all candidates.

    The sums run in at least float32; on a GPU their order, and so the last bit, is free unless torch's deterministic
    algorithms are on.
    """
    of_rows, of_columns = weights
    if factors.unequal is not None:
        of_rows, of_columns = of_rows.times(factors.unequal.own), of_columns.times(factors.unequal.of_candidates)
    precision = torch.promote_types(queries_bD.dtype, torch.float32)
    query_gradient_bD = torch.zeros(queries_bD.shape, dtype=precision, device=queries_bD.device)
    candidate_gradient_BD = torch.zeros(candidates_BD.shape, dtype=precision, device=queries_bD.device)
    first, count = layout.own_queries.start, len(layout.own_queries)
    own_b = torch.arange(first, first + count, device=queries_bD.device)

    def add(rows: Tensor, columns: Tensor, weights: Tensor) -> None:
        """Add the weights [P] of the pairs (own row, global column)."""
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            weights_P1 = (weights[part] * factors.loss).to(precision)[:, None]
            query_gradient_bD.index_add_(0, rows[part], weights_P1 * candidates_BD[columns[part]])
            candidate_gradient_BD.index_add_(0, columns[part], weights_P1 * queries_bD[rows[part]])

    add(own_b - first, of_rows.hardest, of_rows.push)
    add(own_b - first, own_b, -of_rows.pull - of_columns.pull[first : first + count])
    # A candidate's hardest query belongs to one rank, which alone adds this pair's part.
    here_B = (of_columns.hardest >= first) & (of_columns.hardest < first + count)
    columns_P = here_B.nonzero().squeeze(1)
    add(of_columns.hardest[columns_P] - first, columns_P, of_columns.push[columns_P])
    along_queries = torch.zeros((), dtype=precision, device=queries_bD.device)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        along_queries += (query_gradient_bD[part] * queries_bD[part]).sum()
    queries_bD.to_given_(query_gradient_bD.mul_(factors.scale))
    candidate_gradient_BD *= factors.scale
    return Gradients(query_gradient_bD.to(queries_bD.dtype), candidate_gradient_BD, along_queries)
