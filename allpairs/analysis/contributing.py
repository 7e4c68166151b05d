"""COCOS: how many samples contribute to the gradient of an anchor, in one batch and per direction.

Shapes: A anchors, O others they look at, K positives of one anchor.
"""

from typing import Any

import torch
from torch import Tensor

from allpairs.analysis.weights import Direction, View, views
from allpairs.engine.contract import Family
from allpairs.objectives import PairObjective

EPSILON = 0.01
"""The threshold of C §5."""

RELATIVE = "c_relative"
KEYS: dict[Family, tuple[str, ...]] = {
    "triplet": ("c_q", "c_b", "c_0", RELATIVE),
    "softmax": ("c", "w_minus", "w_plus", RELATIVE),
    "ranking": ("c_q", "c_0", RELATIVE),
    "sets": ("c_q", "c_b", "c_0", RELATIVE),
}
"""The counts of each family, in the order of the paper's tables."""


def count_contributing(
    objective: PairObjective[Any],
    scores: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    epsilon: float = EPSILON,
    with_tau: bool = True,
) -> dict[Direction, dict[str, float]]:
    """Return the counts of one batch from its scores [Bq, Bc], by direction and key (`KEYS` of the family).

    - triplet (sums of hinges, hardest negatives, GOAL): a negative contributes when its weight in f(i) exceeds ε in
      size, for the triplet losses exactly when it violates the margin. ``c_q``: contributing negatives per anchor that
      has any (0 without such anchors); ``c_b``: those of the batch; ``c_0``: anchors without. τ of `nt_xent_hn` is left
      out, as C leaves it out for NT-Xent.
    - softmax: ``c``: negatives with p_ij > ε, ``w_minus``: Σ_j p_ij of those, ``w_plus``: 1 − p_ii; each the mean over
      all anchors. p has the margin and the weighting of `unified` in it; the factor 1/τ or γ is left out.
    - ranking (SmoothAP): pairs with G(1 − G)/τ / R(i, Ω)² > ε, averaged over the positives i of an anchor. ``c_q``: the
      mean over anchors that have any, ``c_0``: the number of the others. `with_tau=False` leaves 1/τ out, as the
      released counter does.
    - sets (the other objectives with sets of positives, which C does not count): as triplet, where a negative
      contributes when |W_ij| > ε·max_j |W_ij|: their weights have no common scale that ε could be compared with.

    ``c_relative``, comparable between all: the mean over all anchors of #{ j : |W_ij| > ε·max_j |W_ij| }, positives
    included.

    Source: C §4, Eq. 9 to 13 (COCOS). Its released counters have two slips that are not repeated here: the
    caption→image count of the triplet loss sums the wrong axis, and that of SmoothAP reads rows that are not there.

    Raises:
        UserError: scores or ids that do not fit the objective.
    """
    counts: dict[Direction, dict[str, float]] = {}
    for view in views(objective, scores, query_ids=query_ids, candidate_ids=candidate_ids):
        relative_AO = _exceed_relative(view.weights, epsilon)
        if objective.family == "ranking":
            found = _ranking(view, 1 / objective.constant_factor, epsilon, with_tau)
        elif view.shares is not None:
            found = _softmax(view, view.shares, epsilon)
        elif objective.family == "triplet":
            found = _triplets((view.weights.abs() > epsilon * objective.constant_factor) & view.negative)
        else:
            found = _triplets(relative_AO & view.negative)
        counts[view.direction] = found | {RELATIVE: float(relative_AO.sum(dim=1).double().mean())}
    return counts


def _exceed_relative(weights_AO: Tensor, epsilon: float) -> Tensor:
    size_AO = weights_AO.abs()
    return size_AO > epsilon * size_AO.amax(dim=1, keepdim=True)


def _triplets(contributes_AO: Tensor) -> dict[str, float]:
    per_anchor_A = contributes_AO.sum(dim=1)
    total, active = int(per_anchor_A.sum()), int((per_anchor_A > 0).sum())
    return {
        "c_q": total / active if active else 0.0,
        "c_b": float(total),
        "c_0": float(len(per_anchor_A) - active),
    }


def _softmax(view: View, shares_AO: Tensor, epsilon: float) -> dict[str, float]:
    negatives_AO = shares_AO * view.negative
    contributes_AO = negatives_AO > epsilon
    return {
        "c": float(contributes_AO.sum(dim=1).double().mean()),
        "w_minus": float((negatives_AO * contributes_AO).sum(dim=1).mean()),
        # The shares add up to 1 with the positive's.
        "w_plus": float(negatives_AO.sum(dim=1).mean()),
    }


def _ranking(view: View, tau: float, epsilon: float, with_tau: bool) -> dict[str, float]:
    per_anchor = []
    for scores_O, is_positive_O in zip(view.scores, view.positive, strict=True):
        positives_K = is_positive_O.nonzero().squeeze(1)
        if not len(positives_K):
            per_anchor.append(0.0)
            continue
        difference_KO = scores_O[positives_K, None] - scores_O  # D_ij = s_i − s_j
        others_KO = torch.arange(len(scores_O), device=scores_O.device) != positives_K[:, None]
        lower_KO = torch.sigmoid(difference_KO / tau)  # G(D_ij)
        rank_K1 = 1 + (torch.sigmoid(-difference_KO / tau) * others_KO).sum(dim=1, keepdim=True)
        slope_KO = lower_KO * (1 - lower_KO) / (tau if with_tau else 1.0)
        contributes_KO = (slope_KO / rank_K1**2 > epsilon) & others_KO
        per_anchor.append(float(contributes_KO.sum(dim=1).double().mean()))
    counts_A = torch.tensor(per_anchor, dtype=torch.float64)
    active_A = counts_A > 0
    return {
        "c_q": float(counts_A[active_A].mean()) if active_A.any() else 0.0,
        "c_0": float((~active_A).sum()),
    }
