"""One rank's rows of a batch, checked and ready for the engine, on the unit sphere unless the objective says otherwise.

Shapes: bq queries and bc candidates on this rank, b of each where they must match row by row, D embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.engine.products import HALF
from allpairs.engine.rows import SMALLEST, Rows, factor_into_range, inverse_lengths
from allpairs.errors import UserError

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LocalBatch(NamedTuple):
    """One rank's queries and candidates."""

    queries: Tensor
    """[bq, D] float32 or float64, or as given where half precision is kept."""
    candidates: Tensor
    """[bc, D]."""
    ids: "Ids"
    margins: Tensor | None
    """[b]: one margin per pair."""
    texts: Tensor | None = None
    """[bc] int64: which candidates say the same."""
    inverses: tuple[Tensor, Tensor] | None = None
    """Of both sides 1/length of each row [b, 1], where rows of half precision are yet to be divided by it."""

    def rows(self) -> tuple[Rows, Rows]:
        """Return both sides as they are compared."""
        of_queries, of_candidates = self.inverses or (None, None)
        return Rows(self.queries, of_queries), Rows(self.candidates, of_candidates)


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
    text_ids: Tensor | None = None,
    margins: Tensor | None = None,
    normalize: bool = True,
    own_positive: bool = True,
    keep_half: bool = False,
) -> LocalBatch:
    """Check one rank's items and return them in at least float32, rows scaled to length 1 if `normalize`.

    `own_positive`: row i must match row i, ids or not. `keep_half`: embeddings of one half-precision type stay in it,
    and are scaled where they are used: see `LocalBatch.rows`.

    Raises:
        UserError: shapes, types or ids that cannot be a batch; the message names the argument.
    """
    check_embeddings(queries, candidates)
    counts = len(queries), len(candidates)
    ids = match_ids(query_ids, candidate_ids, counts, queries.device, own_positive=own_positive)
    texts = match_integers("text_ids", text_ids, len(candidates), queries.device)
    precision = torch.promote_types(queries.dtype, candidates.dtype)
    if not keep_half:
        precision = torch.promote_types(precision, torch.float32)
    queries, candidates = _recordable(queries).to(precision), _recordable(candidates).to(precision)
    margins = match_margins(margins, queries)
    if normalize and precision in HALF:
        inverses = inverse_lengths(queries), inverse_lengths(candidates)
        return LocalBatch(queries, candidates, ids, margins, texts, inverses)
    if normalize:
        queries, candidates = unit_rows(queries), unit_rows(candidates)
    return LocalBatch(queries, candidates, ids, margins, texts)


def nothing_or_nan(batch: LocalBatch) -> Tensor:
    """Return 0 [], or NaN if an embedding or margin of the batch is not finite; without gradient, in O(b) memory."""
    precision = torch.promote_types(batch.queries.dtype, torch.float32)
    # A length tells it of its row, whose numbers might not add up in float32.
    sums = list(batch.inverses or [])
    if not sums:
        sums = [rows.detach().sum(dim=1, dtype=precision) for rows in (batch.queries, batch.candidates)]
    if batch.margins is not None:
        sums.append(batch.margins.to(precision))
    return sum(((each * 0).sum() for each in sums[1:]), (sums[0] * 0).sum())


def unit_rows(rows_bD: Tensor) -> Tensor:
    """Return each row [b, D], in float32 or float64, divided by its length, right for any finite length; zeros stay."""
    # Without a copy, and a norm of infinite order takes twenty times as long on a CPU.
    largest_b1 = torch.maximum(rows_bD.detach().amax(dim=1, keepdim=True), -rows_bD.detach().amin(dim=1, keepdim=True))
    # Where waiting costs nothing, ordinary rows are not copied.
    if not rows_bD.is_cuda and bool((((largest_b1 > 2.0**-30) & (largest_b1 < 2.0**40)) | (largest_b1 == 0)).all()):
        return F.normalize(rows_bD, dim=1, eps=SMALLEST)
    return F.normalize(rows_bD * factor_into_range(largest_b1), dim=1, eps=SMALLEST)


def _recordable(rows: Tensor) -> Tensor:
    """Return embeddings that were made in inference mode as autograd can save them: a frozen side's."""
    return rows.clone() if rows.is_inference() and not torch.is_inference_mode_enabled() else rows


def check_embeddings(queries: Tensor, candidates: Tensor) -> None:
    """Raise UserError unless these are two matrices of embeddings of one size on one device."""
    for name, value in (("queries", queries), ("candidates", candidates)):
        _check_side(name, value)
    if queries.shape[1] != candidates.shape[1]:
        raise UserError(
            f"queries {list(queries.shape)} and candidates {list(candidates.shape)}: both need the same embedding size"
        )
    if queries.device != candidates.device:
        raise UserError(
            f"queries are on {queries.device}, candidates on {candidates.device}: both must be on one device; "
            f"candidates.to({str(queries.device)!r}) moves them"
        )


def check_tensor(name: str, value: object, accepted: str) -> None:
    """Raise UserError, with what makes one of it, unless `value` is a tensor; `accepted` says of what."""
    if isinstance(value, Tensor):
        return
    kind = type(value).__name__
    hint = ""
    if kind == "ndarray":
        hint = f"; torch.from_numpy({name}) makes one of it"
    elif isinstance(value, list | tuple):
        first = value[0] if value else None
        while isinstance(first, list | tuple) and first:
            first = first[0]
        if isinstance(first, Tensor):
            hint = f"; torch.stack({name}) makes one of it"
        elif isinstance(first, str):
            hint = "; number the names first: equal names, equal integers"
        else:
            hint = f"; torch.tensor({name}) makes one of it"
    raise UserError(f"{name}: a tensor of {accepted} is accepted, not {kind}{hint}")


def _check_side(name: str, value: Tensor) -> None:
    check_tensor(name, value, "embeddings [B, D]")
    if value.ndim != 2 or not value.is_floating_point():
        raise UserError(
            f"{name}: floating-point embeddings [B, D] are accepted, not {_describe(value)}{as_floats(name, value)}"
        )
    if value.dtype not in _TYPES:
        accepted = ", ".join(_name(dtype) for dtype in _TYPES)
        raise UserError(f"{name}: embeddings of {accepted} are accepted, not {_describe(value)}")
    if value.layout != torch.strided:
        raise UserError(f"{name}: dense embeddings are accepted, not {_name(value.layout)}; to_dense() makes them so")
    if value.is_meta:
        raise UserError(f"{name}: embeddings with numbers are accepted, not those of the device meta")
    if value.shape[1] == 0:
        raise UserError(f"{name} {list(value.shape)}: an embedding needs at least one number")


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
    of_queries = match_integers("query_ids", query_ids, counts[0], device)
    of_candidates = match_integers("candidate_ids", candidate_ids, counts[1], device)
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


def match_integers(name: str, ids: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """Return the ids [count] called `name` as int64 on `device`; None where none are given.

    Raises:
        UserError: ids of the wrong shape or type.
    """
    if ids is None:
        return None
    check_tensor(name, ids, f"one integer per row, [{count}],")
    if ids.shape != (count,) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        hint = f"; {name}.long()" if ids.shape == (count,) and ids.is_floating_point() else ""
        raise UserError(f"{name}: one integer per row, [{count}], is accepted, not {_describe(ids)}{hint}")
    if ids.dtype == torch.uint64 and bool((ids.view(torch.int64) < 0).any()):
        raise UserError(f"{name}: integers below 2⁶³ are accepted; a larger one would meet a negative one")
    return ids.to(device, torch.int64)


def match_margins(margins: Tensor | None, like: Tensor) -> Tensor | None:
    """Return `margins` [b] in at least float32 beside `like` [b, …]: given data, through which no gradient flows.

    Raises:
        UserError: margins of the wrong shape or type.
    """
    if margins is None:
        return None
    check_tensor("margins", margins, f"one number per pair, [{len(like)}],")
    if margins.shape != (len(like),) or not margins.is_floating_point():
        hint = as_floats("margins", margins)
        raise UserError(f"margins: one number per pair, [{len(like)}], is accepted, not {_describe(margins)}{hint}")
    return margins.detach().to(like.device, torch.promote_types(like.dtype, torch.float32))


def as_floats(name: str, value: Tensor) -> str:
    """Return what makes floating-point numbers of integers, the end of a message; empty where that does not lack."""
    return "" if value.is_floating_point() or value.is_complex() else f"; {name}.float()"


def _describe(value: Tensor) -> str:
    return f"{_name(value.dtype)} {list(value.shape)}"


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
