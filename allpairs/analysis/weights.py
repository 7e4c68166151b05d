"""The weights of one direction's anchors, as each anchor's own f(i) has them.

Shapes: A anchors (rows), O others (columns) they look at; in the direction candidate→query these are the transpose.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from allpairs.objectives import PairObjective, shares_from_scores, weights_from_scores

Direction = Literal["i2t", "t2i"]


class View(NamedTuple):
    """A batch of scores seen by the anchors of one direction."""

    direction: Direction
    """i2t: the queries (rows of S) are the anchors; t2i: the candidates."""
    scores: Tensor
    """[A, O]."""
    weights: Tensor
    """[A, O]: ∂f(i)/∂S_ij of anchor i alone; the factor 1/A of the mean over anchors is taken out."""
    positive: Tensor
    """[A, O] bool: the anchor's own pair, or all of its id for objectives that take positives from ids."""
    negative: Tensor
    """[A, O] bool: N(i)."""
    shares: Tensor | None
    """[A, O]: p_ij of an objective of the family "softmax", else None."""


def views(
    objective: PairObjective[Any],
    scores: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
) -> Iterator[View]:
    """Yield both directions of a score matrix [Bq, Bc]; ids as `allpairs.objectives.from_scores` takes them.

    Raises:
        UserError: scores or ids that do not fit the objective.
    """
    ids = {"query_ids": query_ids, "candidate_ids": candidate_ids}
    of_rows = weights_from_scores(objective, scores, **ids, direction="rows")
    of_columns = weights_from_scores(objective, scores, **ids, direction="columns")
    shares = shares_from_scores(objective, scores, **ids) if objective.family == "softmax" else (None, None)
    if query_ids is None or candidate_ids is None:  # one side alone stands for both
        query_ids = candidate_ids = query_ids if candidate_ids is None else candidate_ids
    if query_ids is None or candidate_ids is None:
        query_ids = candidate_ids = torch.arange(len(scores), device=scores.device)
    same = query_ids[:, None] == candidate_ids
    positive = torch.eye(len(scores), dtype=torch.bool, device=scores.device) if objective.own_positive else same
    mean = objective.reduction == "mean"
    rows, columns = scores.shape if mean else (1, 1)
    yield View("i2t", scores, of_rows * rows, positive, ~same, shares[0])
    yield View("t2i", scores.T, of_columns.T * columns, positive.T, ~same.T, shares[1])
