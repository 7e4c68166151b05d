"""Gradients of objectives whose anchors look at two columns each, their hardest negative and their own pair: O(B·D).

The scores are not looked at again: where a full weight matrix costs three more products of B²·D, this costs none.

Shapes: b local pairs, B pairs of all ranks, D embedding, P pairs with a weight, T columns they touch, A that arrive.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from allpairs.engine.chunks import chunks
from allpairs.engine.contract import SparseWeights
from allpairs.engine.exchange import RankLayout, all_gather, exchange_rows
from allpairs.engine.rows import Rows

_CHUNK = 8192
"""Pairs at a time, so that gathered embeddings stay small beside the gradients."""


class Gradients(NamedTuple):
    """What backward finds."""

    queries: Tensor
    """[b, D] in the type of the embeddings: of this rank's queries."""
    candidates: Tensor
    """[b, D] the same of this rank's candidates, summed over the ranks."""
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


class Embeddings(NamedTuple):
    """What a rank holds in backward."""

    queries: Rows
    """[b, D]: its own."""
    candidates: Rows
    """[B, D]: all."""
    own_candidates: Rows
    """[b, D], as they were given."""


class Pairs(NamedTuple):
    """P weighted pairs of a query of this rank and any candidate."""

    rows: Tensor
    """[P] int64: by place among this rank's queries."""
    columns: Tensor
    """[P] int64, global."""
    weights: Tensor
    """[P]."""

    def where(self, chosen_P: Tensor) -> "Pairs":
        """Return the chosen pairs, [P] bool, in their order."""
        places = chosen_P.nonzero().squeeze(1)
        return Pairs(self.rows[places], self.columns[places], self.weights[places])


def gradients(embeddings: Embeddings, layout: RankLayout, weights: BothDirections, factors: Factors) -> Gradients:
    """Return the gradients of this rank's queries and candidates. A collective.

    The sums run in at least float32; on a GPU their order, and so the last bit, is free unless torch's deterministic
    algorithms are on. Of the other ranks' candidates only those that a query of this rank has touched are sent.
    """
    queries_bD, candidates_BD, own_candidates_bD = embeddings
    precision = torch.promote_types(queries_bD.dtype, torch.float32)
    pairs = _pairs(layout, weights, factors, queries_bD.device)
    query_gradient_bD = torch.zeros(queries_bD.shape, dtype=precision, device=queries_bD.device)
    _add(query_gradient_bD, pairs.rows, pairs.weights, candidates_BD, pairs.columns)
    own = layout.own_candidates
    candidate_gradient_bD = query_gradient_bD.new_zeros(len(own), candidates_BD.shape[1])
    if layout.world_size == 1:
        _add(candidate_gradient_bD, pairs.columns, pairs.weights, queries_bD, pairs.rows)
    else:
        is_own_P = (pairs.columns >= own.start) & (pairs.columns < own.stop)
        here = pairs.where(is_own_P)
        _add(candidate_gradient_bD, here.columns - own.start, here.weights, queries_bD, here.rows)
        _exchange(candidate_gradient_bD, pairs.where(~is_own_P & (pairs.weights != 0)), queries_bD, layout)
    along_queries = torch.zeros((), dtype=precision, device=queries_bD.device)
    for start in range(0, len(queries_bD), _CHUNK):
        part = slice(start, start + _CHUNK)
        along_queries += (query_gradient_bD[part] * queries_bD[part]).sum()
    queries_bD.to_given_(query_gradient_bD.mul_(factors.scale))
    own_candidates_bD.to_given_(candidate_gradient_bD.mul_(factors.scale))
    return Gradients(query_gradient_bD.to(queries_bD.dtype), candidate_gradient_bD.to(queries_bD.dtype), along_queries)


def _pairs(layout: RankLayout, weights: BothDirections, factors: Factors, device: torch.device) -> Pairs:
    """Return all pairs of this rank's queries that have a weight: hardest candidates, own pairs, hardest queries."""
    of_rows, of_columns = weights
    if factors.unequal is not None:
        of_rows, of_columns = of_rows.times(factors.unequal.own), of_columns.times(factors.unequal.of_candidates)
    first, count = layout.own_queries.start, len(layout.own_queries)
    own_b = torch.arange(first, first + count, device=device)
    # A candidate's hardest query belongs to one rank, which alone adds this pair's part.
    columns_P = own_b
    if layout.world_size > 1:
        here_B = (of_columns.hardest >= first) & (of_columns.hardest < first + count)
        columns_P = here_B.nonzero().squeeze(1)
    pull_b = -of_rows.pull - of_columns.pull[first : first + count]
    return Pairs(
        torch.cat([own_b - first, own_b - first, of_columns.hardest[columns_P] - first]),
        torch.cat([of_rows.hardest, own_b, columns_P]),
        torch.cat([of_rows.push, pull_b, of_columns.push[columns_P]]) * factors.loss,
    )


def _add(total_TD: Tensor, places_P: Tensor, weights_P: Tensor, rows_D: Rows, numbers_P: Tensor) -> None:
    """Add to `total_TD`, at P places, as many of `rows_D` by their weights."""
    step = min(_CHUNK, max(1, len(rows_D)))
    for start in range(0, len(places_P), step):
        part = slice(start, start + step)
        weights_P1 = weights_P[part].to(total_TD.dtype)[:, None]
        total_TD.index_add_(0, places_P[part], weights_P1 * rows_D[numbers_P[part]])


def _exchange(candidate_gradient_bD: Tensor, pairs: Pairs, queries_bD: Rows, layout: RankLayout) -> None:
    """Add what other ranks' queries do to this rank's candidates, and tell theirs what its own queries do to them.

    All at once where no rank then sends or receives more rows than a chunk of dense gradients has, else chunk by chunk.
    """
    all_chunks = chunks(layout.candidate_counts)
    length = all_chunks[0].length
    at_once = _parcels(pairs, layout)
    if at_once.largest() <= layout.world_size * length:
        _deliver(candidate_gradient_bD, at_once, queries_bD, layout)
        return
    ends_N = torch.tensor(layout.candidate_counts, device=queries_bD.device).cumsum(0)
    starts_N = ends_N - ends_N.diff(prepend=ends_N.new_zeros(1))
    owners_P = torch.searchsorted(ends_N, pairs.columns, right=True)
    chunk_P = (pairs.columns - starts_N[owners_P]) // length
    for number in range(len(all_chunks)):
        _deliver(candidate_gradient_bD, _parcels(pairs.where(chunk_P == number), layout), queries_bD, layout)


class _Parcels(NamedTuple):
    """What this rank sends to each other."""

    pairs: Pairs
    touched: Tensor
    """[T] int64: the columns of the pairs, each once and ascending, so that each owner's lie together."""
    slots: Tensor
    """[P] int64: where each pair's column is among them."""
    counts: list[list[int]]
    """How many columns each rank sends (first index) to each."""

    def largest(self) -> int:
        """Return the most that any rank sends or receives."""
        return max(map(sum, [*self.counts, *zip(*self.counts, strict=True)]))


def _parcels(pairs: Pairs, layout: RankLayout) -> _Parcels:
    """Sort pairs by their columns' owners, and learn what the others have for this rank. A collective."""
    touched_T, slots_P = pairs.columns.unique(return_inverse=True)
    ends_N = torch.tensor(layout.candidate_counts, device=touched_T.device).cumsum(0)
    sent_N = torch.bincount(torch.searchsorted(ends_N, touched_T, right=True), minlength=layout.world_size)
    counts_NN = all_gather(sent_N, layout.world_size, layout.group)
    return _Parcels(pairs, touched_T, slots_P, counts_NN.tolist())


def _deliver(candidate_gradient_bD: Tensor, parcels: _Parcels, queries_bD: Rows, layout: RankLayout) -> None:
    """Sum the pairs of each touched column, send the sums to its owner and add what arrives here. A collective."""
    pairs, touched_T, slots_P, counts = parcels
    sums_TD = candidate_gradient_bD.new_zeros(len(touched_T), candidate_gradient_bD.shape[1])
    _add(sums_TD, slots_P, pairs.weights, queries_bD, pairs.rows)
    sent, received = counts[layout.rank], [row[layout.rank] for row in counts]
    columns_A = exchange_rows(touched_T, sent, received, layout.group)
    arrived_AD = exchange_rows(sums_TD, sent, received, layout.group)
    candidate_gradient_bD.index_add_(0, columns_A - layout.own_candidates.start, arrived_AD)
