"""Gradient analysis on the unit sphere: how much of an objective's gradient moves an embedding at all.

Shapes: B pairs, D embedding; A anchors, O others they look at.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from allpairs.analysis.weights import View, views
from allpairs.objectives import PairObjective


class TangentialNorms(NamedTuple):
    """Norms ‖∂L/∂x‖·sin θ(x, ∂L/∂x), the part of a gradient along the sphere; means over anchors of both directions.

    f(i) is summed over the anchors here, not averaged: a norm does not depend on the size of the batch by 1/B.
    """

    anchor: float
    """Of f(i) at its anchor v_i: ‖Σ_j W_ij t_j‖ along the sphere. U-Eq. 11."""
    printed: float
    """U-Eq. 17 as it is printed, Σ_j |W_ij|·‖t_j − t_i‖·sin θ(v_i, t_j − t_i): a sum of norms, which bounds `anchor`
    from above (a remainder of weights that do not add up to 0 counts at t_i)."""
    negative: float
    """Of f(i) at the negative it moves most: max_j |W_ij|·sin θ(v_i, t_j). U-Eq. 12 and 18."""
    batch: float
    """Of the whole batch's loss, both directions, at each embedding."""


class Spread(NamedTuple):
    """How far similarities are from 1."""

    positives: float
    """Mean of 1 − S_ii."""
    negatives: float
    """Mean of 1 − S_ij over all negatives."""


def tangential(gradient: Tensor, unit: Tensor) -> Tensor:
    """Return ‖g‖·sin θ(x, g) [...] of gradients g at unit vectors x, both [..., D]."""
    along = (gradient * unit).sum(dim=-1, keepdim=True)
    return torch.linalg.vector_norm(gradient - along * unit, dim=-1)


@torch.no_grad()
def tangential_norms(
    objective: PairObjective[Any], queries: Tensor, candidates: Tensor, *, ids: Tensor | None = None
) -> TangentialNorms:
    """Return the tangential gradient norms of matched queries and candidates [B, D], which are scaled to length 1.

    `ids` [B] name the instance of each pair, as at the objective's call. The gradients come from the objective's pair
    weights. Give float64 where similarities are near 1.

    Source: U §3.3, Eq. 8 to 19 (Unified Loss).

    Raises:
        UserError: embeddings or ids that are no batch of matched pairs.
    """
    queries, candidates = normalize(queries, dim=1), normalize(candidates, dim=1)
    scores_BB = queries @ candidates.T
    both = list(views(objective, scores_BB, query_ids=ids, candidate_ids=ids))
    sides = [(both[0], queries, candidates), (both[1], candidates, queries)]
    of_anchors, printed, of_negatives = [], [], []
    for view, anchors_BD, others_BD in sides:
        of_anchors.append(tangential(view.weights @ others_BD, anchors_BD))
        printed.append(_printed(view, others_BD))
        sines_AO = _sines(anchors_BD, others_BD)
        of_negatives.append((view.weights.abs() * sines_AO * view.negative).amax(dim=1))
    weights_BB = both[0].weights + both[1].weights.T
    of_batch = (
        tangential(weights_BB @ candidates, queries),
        tangential(weights_BB.T @ queries, candidates),
    )
    means = (float(torch.cat(parts).mean()) for parts in (of_anchors, printed, of_negatives, list(of_batch)))
    return TangentialNorms(*means)


def spread(queries: Tensor, candidates: Tensor, *, ids: Tensor | None = None) -> Spread:
    """Return how far the similarities of matched pairs [B, D] have spread from 1; `ids` as in `tangential_norms`."""
    queries, candidates = normalize(queries, dim=1), normalize(candidates, dim=1)
    # 1 − q·c = ‖q − c‖²/2 of unit vectors: exact where the similarity itself rounds to 1.
    away_BB = _distances(queries, candidates) ** 2 / 2
    ids = torch.arange(len(queries)) if ids is None else ids
    return Spread(float(away_BB.diagonal().mean()), float(away_BB[ids[:, None] != ids].mean()))


def _printed(view: View, others_BD: Tensor) -> Tensor:
    own_A1 = view.scores.diagonal()[:, None]
    # The part of t_j − t_i across v_i, whose length along v_i is S_ij − S_ii.
    across_AO = (_distances(others_BD, others_BD) ** 2 - (view.scores - own_A1) ** 2).clamp(min=0).sqrt()
    own_A = (1 - own_A1.squeeze(1) ** 2).clamp(min=0).sqrt()
    remainder_A = view.weights.sum(dim=1).abs()
    return (view.weights.abs() * across_AO * view.negative).sum(dim=1) + remainder_A * own_A


def _sines(anchors_BD: Tensor, others_BD: Tensor) -> Tensor:
    away_BB = _distances(anchors_BD, others_BD) ** 2 / 2
    return (away_BB * (2 - away_BB)).clamp(min=0).sqrt()


def _distances(left_BD: Tensor, right_BD: Tensor) -> Tensor:
    return torch.cdist(left_BD, right_BD, compute_mode="donot_use_mm_for_euclid_dist")
