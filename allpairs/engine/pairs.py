"""One process's share of a batch of matched pairs, checked and ready for the engine.

Shapes: b pairs on this process, D embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from allpairs.errors import UserError


class Pairs(NamedTuple):
    """Matched pairs: row i of `queries` belongs to row i of `candidates`."""

    queries: Tensor
    """[b, D] float32 or float64."""
    candidates: Tensor
    """[b, D]."""
    ids: Tensor | None
    """[b] int64: which pairs show the same instance."""
    margins: Tensor | None
    """[b]: one margin per pair."""


def prepare(
    queries: Tensor,
    candidates: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    margins: Tensor | None = None,
    normalize: bool = True,
) -> Pairs:
    """Check one process's pairs and return them in at least float32, rows scaled to length 1 if `normalize`.

    Raises:
        UserError: shapes, types or ids that cannot be matched pairs; the message names the argument.
    """
    for name, value in (("queries", queries), ("candidates", candidates)):
        if value.ndim != 2 or not value.is_floating_point():
            raise UserError(f"{name}: floating-point embeddings [B, D] are accepted, not {_describe(value)}")
    if queries.shape != candidates.shape:
        raise UserError(
            f"queries {list(queries.shape)} and candidates {list(candidates.shape)}: row i must match row i, "
            "so both need the same number of rows and the same embedding size"
        )
    precision = torch.promote_types(torch.promote_types(queries.dtype, candidates.dtype), torch.float32)
    queries, candidates = queries.to(precision), candidates.to(precision)
    if normalize:
        queries, candidates = F.normalize(queries, dim=1), F.normalize(candidates, dim=1)
    ids = match_ids(query_ids, candidate_ids, len(queries), queries.device)
    return Pairs(queries, candidates, ids, match_margins(margins, queries))


def match_ids(
    query_ids: Tensor | None, candidate_ids: Tensor | None, count: int, device: torch.device
) -> Tensor | None:
    """Return the one id [b] of each of `count` pairs as int64, or None; either side alone stands for both.

    Raises:
        UserError: ids of the wrong shape or type, or two sides that disagree about a pair.
    """
    sides = []
    for name, ids in (("query_ids", query_ids), ("candidate_ids", candidate_ids)):
        if ids is None:
            continue
        if ids.shape != (count,) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UserError(f"{name}: one integer per pair, [{count}], is accepted, not {_describe(ids)}")
        sides.append(ids.to(device, torch.int64))
    if len(sides) == 2 and not torch.equal(*sides):
        # Two different id spaces (image 3, caption 15) would mask pairs at random.
        row = int((sides[0] != sides[1]).nonzero()[0])
        raise UserError(
            f"query_ids[{row}] is {int(sides[0][row])} but candidate_ids[{row}] is {int(sides[1][row])}: row i must "
            "match row i; both name the instance (for example the image), so that equal ids are never negatives"
        )
    return sides[0] if sides else None


def match_margins(margins: Tensor | None, like: Tensor) -> Tensor | None:
    """Return `margins` [b] in the type of `like` [b, …]: given data, through which no gradient flows.

    Raises:
        UserError: margins of the wrong shape or type.
    """
    if margins is None:
        return None
    if margins.shape != (len(like),) or not margins.is_floating_point():
        raise UserError(f"margins: one number per pair, [{len(like)}], is accepted, not {_describe(margins)}")
    return margins.detach().to(like)


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
