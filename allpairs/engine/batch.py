"""One rank's rows of a batch, checked and ready for the engine, on the unit sphere unless the objective says otherwise.

Shapes: bq queries and bc candidates on this rank, b of each where they must match row by row, D embedding.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.products import only_once
from allpairs.errors import UserError

_SMALLEST = 1e-12
"""A row shorter than this is divided by this instead, as torch's `normalize` does."""


class LocalBatch(NamedTuple):
    """One rank's queries and candidates."""

    queries: Tensor
    """[bq, D] float32 or float64, or as given where half precision is kept."""
    candidates: Tensor
    """[bc, D]."""
    ids: "Ids"
    margins: Tensor | None
    """[b]: one margin per pair."""


class Ids(NamedTuple):
    """Which items show the same instance: both sides have ids or neither, and then row i belongs to row i."""

    queries: Tensor | None
    """[bq] int64."""
    candidates: Tensor | None
    """[bc] int64."""


def prepare(
    queries: Tensor,
    candidates: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    margins: Tensor | None = None,
    normalize: bool = True,
    own_positive: bool = True,
    keep_half: bool = False,
) -> LocalBatch:
    """Check one rank's items and return them in at least float32, rows scaled to length 1 if `normalize`.

    `own_positive`: row i must match row i, ids or not. `keep_half`: embeddings of one half-precision type stay in it.

    Raises:
        UserError: shapes, types or ids that cannot be a batch; the message names the argument.
    """
    for name, value in (("queries", queries), ("candidates", candidates)):
        if value.ndim != 2 or not value.is_floating_point():
            raise UserError(f"{name}: floating-point embeddings [B, D] are accepted, not {_describe(value)}")
    if queries.shape[1] != candidates.shape[1]:
        raise UserError(
            f"queries {list(queries.shape)} and candidates {list(candidates.shape)}: both need the same embedding size"
        )
    counts = len(queries), len(candidates)
    ids = match_ids(query_ids, candidate_ids, counts, queries.device, own_positive=own_positive)
    precision = torch.promote_types(queries.dtype, candidates.dtype)
    if not keep_half:
        precision = torch.promote_types(precision, torch.float32)
    queries, candidates = queries.to(precision), candidates.to(precision)
    if normalize:
        queries, candidates = unit_rows(queries), unit_rows(candidates)
    return LocalBatch(queries, candidates, ids, match_margins(margins, queries))


def nothing_or_nan(batch: LocalBatch) -> Tensor:
    """Return 0 [], or NaN if an embedding of the batch is not finite; without gradient, in O(b) memory."""
    precision = torch.promote_types(batch.queries.dtype, torch.float32)
    sums = [rows.detach().sum(dim=1, dtype=precision) for rows in (batch.queries, batch.candidates)]
    return (sums[0] * 0).sum() + (sums[1] * 0).sum()


def unit_rows(rows_bD: Tensor) -> Tensor:
    """Return each row divided by its length. Half precision is normalised in float32 and returned in half.

    For half precision the graph keeps the result and one number per row, not the float32 copies: O(b·D) half bytes.
    """
    if rows_bD.dtype in (torch.float16, torch.bfloat16):
        unit_bD: Tensor = _UnitRowsOfHalf.apply(rows_bD)
        return unit_bD
    return F.normalize(rows_bD, dim=1, eps=_SMALLEST)


class _UnitRowsOfHalf(torch.autograd.Function):
    """x/‖x‖, whose gradient is (g − (g·x̂)x̂)/‖x‖."""

    @staticmethod
    def forward(ctx: Any, rows_bD: Tensor) -> Tensor:
        length_b1 = torch.linalg.vector_norm(rows_bD, dim=1, keepdim=True, dtype=torch.float32).clamp(min=_SMALLEST)
        unit_bD = (rows_bD / length_b1).to(rows_bD.dtype)
        ctx.save_for_backward(unit_bD, length_b1)
        return unit_bD

    @staticmethod
    @only_once
    def backward(ctx: Any, gradient_bD: Tensor) -> Tensor:
        unit_bD, length_b1 = ctx.saved_tensors
        gradient_bD = gradient_bD.float()
        along_b1 = (gradient_bD * unit_bD).sum(dim=1, keepdim=True)
        return ((gradient_bD - along_b1 * unit_bD) / length_b1).to(unit_bD.dtype)


def match_ids(
    query_ids: Tensor | None,
    candidate_ids: Tensor | None,
    counts: tuple[int, int],
    device: torch.device,
    *,
    own_positive: bool,
) -> Ids:
    """Return the ids of both sides as int64, or none at all; where row i matches row i one side stands for both.

    Raises:
        UserError: ids of the wrong shape or type, sides of different lengths that nothing relates, or two ids for one
            pair of an objective whose row i must match row i.
    """
    both: list[Tensor | None] = []
    for name, ids, count in (("query_ids", query_ids, counts[0]), ("candidate_ids", candidate_ids, counts[1])):
        if ids is None:
            both.append(None)
            continue
        if ids.shape != (count,) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UserError(f"{name}: one integer per row, [{count}], is accepted, not {_describe(ids)}")
        both.append(ids.to(device, torch.int64))
    of_queries, of_candidates = both
    if counts[0] != counts[1]:
        if own_positive:
            raise UserError(
                f"{counts[0]} queries and {counts[1]} candidates: row i must match row i, so both need the same number"
            )
        if of_queries is None or of_candidates is None:
            raise UserError(
                f"{counts[0]} queries and {counts[1]} candidates: with different numbers, query_ids and candidate_ids "
                "must both say which belong together"
            )
    if of_queries is None or of_candidates is None:
        either = of_candidates if of_queries is None else of_queries
        return Ids(either, either)
    if own_positive and not torch.equal(of_queries, of_candidates):
        # Two different id spaces (image 3, caption 15) would mask pairs at random.
        row = int((of_queries != of_candidates).nonzero()[0])
        raise UserError(
            f"query_ids[{row}] is {int(of_queries[row])} but candidate_ids[{row}] is {int(of_candidates[row])}: row i "
            "must match row i; both name the instance (for example the image), so that equal ids are never negatives"
        )
    return Ids(of_queries, of_candidates)


def match_margins(margins: Tensor | None, like: Tensor) -> Tensor | None:
    """Return `margins` [b] in at least float32 beside `like` [b, …]: given data, through which no gradient flows.

    Raises:
        UserError: margins of the wrong shape or type.
    """
    if margins is None:
        return None
    if margins.shape != (len(like),) or not margins.is_floating_point():
        raise UserError(f"margins: one number per pair, [{len(like)}], is accepted, not {_describe(margins)}")
    return margins.detach().to(like.device, torch.promote_types(like.dtype, torch.float32))


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
