"""The formulas of the papers written out with Python loops over float64 scalars, sharing no code with the library.

U: unified loss, G: GOAL, C: COCOS. An anchor is one row of the scores: of S for queries, of its transpose for
candidates. Everything is differentiable; `goal`, which is no loss, gives its weights directly (`goal_weights`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Row:
    """What one anchor sees: scalars `s[j]`, its own pair's index, and what the ids say about the others."""

    s: list[Tensor]
    own: int
    positives: list[int]
    negatives: list[int]
    own_scores: list[Tensor]  # S_kk of all pairs; empty where lengths differ
    margin: float | None  # one given for this pair (U-Eq. 26)

    @property
    def d(self) -> Tensor:
        return self.s[self.own]

    @property
    def hardest(self) -> int:
        """Index of the highest negative; max() returns the first of equals, so the lowest index on a tie."""
        return max(self.negatives, key=lambda j: self.s[j].item())

    def m(self, margin: float) -> float:
        return margin if self.margin is None else self.margin


def unit(vectors: Tensor) -> Tensor:
    return torch.stack([vector / (vector * vector).sum().sqrt() for vector in vectors])


def scores(queries: Tensor, candidates: Tensor) -> Tensor:
    return torch.stack([torch.stack([(q * c).sum() for c in candidates]) for q in queries])


def rows(
    S: Tensor,
    query_ids: list[int] | None = None,
    candidate_ids: list[int] | None = None,
    margins: list[float] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Anchors of both directions. Without ids row i matches row i; ids of one side then stand for the other's too."""
    n_queries, n_candidates = len(S), len(S[0])
    if query_ids is None and candidate_ids is None:
        query_ids, candidate_ids = list(range(n_queries)), list(range(n_candidates))
    query_ids = candidate_ids if query_ids is None else query_ids
    candidate_ids = query_ids if candidate_ids is None else candidate_ids
    assert query_ids is not None
    assert candidate_ids is not None
    own_scores = [S[k, k] for k in range(n_queries)] if n_queries == n_candidates else []

    def row(i: int, s: list[Tensor], mine: int, others: list[int]) -> Row:
        same = [j for j in range(len(others)) if others[j] == mine]
        different = [j for j in range(len(others)) if others[j] != mine]
        return Row(s, i, same, different, own_scores, None if margins is None else margins[i])

    return (
        [row(i, [S[i, j] for j in range(n_candidates)], query_ids[i], candidate_ids) for i in range(n_queries)],
        [row(j, [S[i, j] for i in range(n_queries)], candidate_ids[j], query_ids) for j in range(n_candidates)],
    )


# --- scalars ---------------------------------------------------------------------------------------------------------


def total(terms: Iterable[Tensor], like: Tensor) -> Tensor:
    result = like * 0
    for term in terms:
        result = result + term
    return result


def mean(terms: list[Tensor]) -> Tensor:
    return total(terms, terms[0]) / len(terms)


def hinge(x: Tensor) -> Tensor:
    return x if x.item() > 0 else x * 0


def log_sum_exp(terms: list[Tensor]) -> Tensor:
    largest = max(term.item() for term in terms)
    return largest + torch.log(total((torch.exp(term - largest) for term in terms), terms[0]))


def log_one_plus_exps(terms: list[Tensor]) -> Tensor:
    return log_sum_exp([terms[0] * 0, *terms])


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def polynomial(coefficients: tuple[float, float, float], x: Tensor) -> Tensor:
    constant, linear, quadratic = coefficients
    return constant + linear * x + quadratic * x * x


# --- U: one positive per anchor --------------------------------------------------------------------------------------


def triplet(row: Row, margin: float = 0.2) -> Tensor:
    return total((hinge(row.m(margin) + row.s[j] - row.d) for j in row.negatives), row.d)


def triplet_hn(row: Row, margin: float = 0.2) -> Tensor:  # U-Eq. 1
    return hinge(row.m(margin) + row.s[row.hardest] - row.d)


def vlc(row: Row, scale: float | Tensor = 1 / 0.07, learn_scale: bool = False) -> Tensor:  # U-Eq. 4
    return log_one_plus_exps([scale * (row.s[j] - row.d) for j in row.negatives])


def nt_xent(row: Row, temperature: float = 0.1) -> Tensor:  # C-Eq. 4: −log of the positive's share
    shares = [torch.exp(row.s[j] / temperature) for j in (row.own, *row.negatives)]
    return -torch.log(shares[0] / total(shares, row.d))


def nt_xent_hn(row: Row, tau: float = 10.0) -> Tensor:  # G-Eq. 6
    positive, negative = torch.exp(tau * row.d), torch.exp(tau * row.s[row.hardest])
    return -torch.log(positive / (positive + negative))


SSP_POSITIVE = (0.5, -0.7, 0.2)
SSP_NEGATIVE = (0.03, -0.4, 0.9)


def unified(
    row: Row,
    *,
    margin: float = 0.2,
    scale: float = 60.0,
    weighting: str = "none",
    positive: tuple[float, float, float] = SSP_POSITIVE,
    negative: tuple[float, float, float] = SSP_NEGATIVE,
    coefficients: tuple[float, float, float] = (1.0, 0.0, 0.0),
    detach_weights: bool = True,
) -> Tensor:
    """U-Eq. 5; with a weighting U-Eq. 24, whose relative form (U-Eq. 25) weights the difference."""

    def weight(w: Tensor) -> Tensor:
        return w.detach() if detach_weights else w

    d, m = row.d, row.m(margin)
    exponents = []
    for s in (row.s[j] for j in row.negatives):
        if weighting == "none":
            difference = s - d
        elif weighting == "linear":
            difference = weight(s.clamp(0, 1)) * s - weight(2 - d) * d
        elif weighting == "sigmoid":
            difference = (
                weight(1 / (1 + torch.exp(-10 * (s - 0.5)))) * s - weight(1 / (1 + torch.exp(2 * (d - 0.5)))) * d
            )
        elif weighting == "ssp":
            difference = weight(polynomial(negative, s)) * s - weight(polynomial(positive, d)) * d
        else:
            assert weighting == "rsp"
            difference = weight(polynomial(coefficients, s - d)) * (s - d)
        exponents.append(scale * (difference + m))
    return log_one_plus_exps(exponents) / scale


def ssp(
    row: Row,
    margin: float = 0.2,
    positive: tuple[float, float, float] = SSP_POSITIVE,
    negative: tuple[float, float, float] = SSP_NEGATIVE,
) -> Tensor:
    h = row.s[row.hardest]
    if h.item() + row.m(margin) > row.d.item() and row.d.item() < 1 - 1e-5:
        return hinge(polynomial(positive, row.d)) + hinge(polynomial(negative, h))
    return row.d * 0


def rsp(row: Row, margin: float = 0.2, coefficients: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> Tensor:
    values = [polynomial(coefficients, row.s[j] - row.d) for j in row.negatives]
    return hinge(max(values, key=lambda value: value.item()) + row.m(margin))


# --- metric learning: positives by id --------------------------------------------------------------------------------


def circle(row: Row, margin: float = 0.25, scale: float = 256.0) -> Tensor:
    if not row.positives or not row.negatives:
        return total(row.s, row.s[0]) * 0
    negative = [scale * hinge(row.s[j].detach() + margin) * (row.s[j] - margin) for j in row.negatives]
    positive = [-scale * hinge(1 + margin - row.s[j].detach()) * (row.s[j] - 1 + margin) for j in row.positives]
    both = log_sum_exp(negative) + log_sum_exp(positive)
    return log_one_plus_exps([both])


def binomial_deviance(row: Row, alpha: float = 2.0, beta: float = 40.0, threshold: float = 0.5) -> Tensor:
    result = total(row.s, row.s[0]) * 0
    if row.positives:
        result = result + mean([log_one_plus_exps([-alpha * (row.s[j] - threshold)]) for j in row.positives])
    if row.negatives:
        result = result + mean([log_one_plus_exps([beta * (row.s[j] - threshold)]) for j in row.negatives])
    return result


def lifted(row: Row, alpha: float = 40.0, beta: float = 2.0) -> Tensor:
    result = total(row.s, row.s[0]) * 0
    if row.positives:
        result = result + 2 / beta * log_sum_exp([-beta * row.s[j] for j in row.positives])
    if row.negatives:
        result = result + 2 / alpha * log_sum_exp([alpha * row.s[j] for j in row.negatives])
    return result


def multi_similarity(
    row: Row, alpha: float = 2.0, beta: float = 40.0, threshold: float = 0.5, epsilon: float = 0.1
) -> Tensor:
    nothing = total(row.s, row.s[0]) * 0
    if not row.positives or not row.negatives:
        return nothing
    hardest_positive = min(row.s[j].item() for j in row.positives)
    hardest_negative = max(row.s[j].item() for j in row.negatives)
    negatives = [row.s[j] for j in row.negatives if row.s[j].item() + epsilon > hardest_positive]
    positives = [row.s[j] for j in row.positives if row.s[j].item() - epsilon < hardest_negative]
    if not positives or not negatives:
        return nothing
    return (
        log_one_plus_exps([-alpha * (s - threshold) for s in positives]) / alpha
        + log_one_plus_exps([beta * (s - threshold) for s in negatives]) / beta
    )


def smooth_ap(row: Row, temperature: float = 0.01) -> Tensor:  # C-Eq. 5 to 8
    if not row.positives:
        return total(row.s, row.s[0]) * 0

    def rank(i: int, among: list[int]) -> Tensor:
        above = (sigmoid(((row.s[j] - row.s[i]) / temperature).clamp(-50, 50)) for j in among if j != i)
        return 1 + total(above, row.s[0])

    everyone = [*row.positives, *row.negatives]
    return 1 - mean([rank(i, row.positives) / rank(i, everyone) for i in row.positives])


LOSSES: dict[str, Callable[..., Tensor]] = {
    "triplet": triplet,
    "triplet_hn": triplet_hn,
    "vlc": vlc,
    "nt_xent": nt_xent,
    "nt_xent_hn": nt_xent_hn,
    "unified": unified,
    "ssp": ssp,
    "rsp": rsp,
    "circle": circle,
    "binomial_deviance": binomial_deviance,
    "lifted": lifted,
    "multi_similarity": multi_similarity,
    "smooth_ap": smooth_ap,
}
SETS = ("circle", "binomial_deviance", "lifted", "multi_similarity", "smooth_ap")
WITH_MARGIN = ("triplet", "triplet_hn", "unified", "ssp", "rsp")


# --- G: weights without a loss ---------------------------------------------------------------------------------------


def goal_row(
    row: Row,
    *,
    triplet: str = "con",
    pair: str = "con",
    margin: float | None = 0.2,
    tau: float = 10.0,
    alpha: float = 2.0,
    beta: float = 10.0,
    threshold: float = 0.5,
    epsilon: float = 0.1,
    offset: float = 0.0,
) -> tuple[float, float]:
    """The weights (at the hardest negative, at the own pair) of one anchor: +T·P₋ and −T·P₊ (G-Eq. 5 to 13)."""

    def exp(x: float) -> float:
        return torch.tensor(x, dtype=torch.float64).exp().item()

    d, h = row.d.item(), row.s[row.hardest].item()
    if triplet == "con":
        t = 1.0 if margin is None or margin + h - d > 0 else 0.0
    elif triplet == "nca":
        t = 1 / (1 + exp(tau * (d - h)))
    else:
        assert triplet == "cir"
        t = 1 / (1 + exp(tau * (d * (2 - d) - h * h - offset)))

    own = [score.item() for score in row.own_scores]
    other_positives = [own[j] for j in row.negatives if own[j] < h + epsilon]
    other_negatives = [
        row.s[j].item() for j in row.negatives if j != row.hardest and row.s[j].item() > min(own) - epsilon
    ]
    if pair == "con":
        plus, minus = 1.0, 1.0
    elif pair == "lin":
        plus, minus = 1 - d, h
    elif pair == "sig":
        plus, minus = 1 / (1 + exp(alpha * (d - threshold))), 1 / (1 + exp(-beta * (h - threshold)))
    elif pair == "lin_ms":
        m_plus = sum(d - r for r in other_positives) / len(other_positives) if other_positives else 0.0
        m_minus = sum(h - r for r in other_negatives) / len(other_negatives) if other_negatives else 0.0
        plus, minus = (1 - m_plus) * (1 - d), (1 + m_minus) * h
    else:
        assert pair == "sig_ms"
        m_plus = sum(exp(alpha * (d - r)) for r in other_positives) / len(other_positives) if other_positives else 1.0
        m_minus = sum(exp(-beta * (h - r)) for r in other_negatives) / len(other_negatives) if other_negatives else 1.0
        plus, minus = 1 / (m_plus + exp(alpha * (d - threshold))), 1 / (m_minus + exp(-beta * (h - threshold)))
    return t * minus, -t * plus


def goal_weights(anchors: list[Row], **arguments: object) -> Tensor:
    """W [anchor, other] of one direction."""
    W = torch.zeros(len(anchors), len(anchors), dtype=torch.float64)
    for row in anchors:
        if row.negatives:
            at_negative, at_own = goal_row(row, **arguments)
            W[row.own, row.hardest] += at_negative
            W[row.own, row.own] += at_own
    return W


# --- the whole objective ---------------------------------------------------------------------------------------------


def anchor_losses(name: str, anchors: list[Row], **arguments: object) -> list[Tensor]:
    """f(i) of each anchor; `goal`'s surrogate is h − d. One positive, but no negative: 0."""
    if name in SETS:
        return [LOSSES[name](row, **arguments) for row in anchors]
    losses = []
    for row in anchors:
        if not row.negatives:
            losses.append(row.d * 0)
        elif name == "goal":
            losses.append(row.s[row.hardest] - row.d)
        else:
            losses.append(LOSSES[name](row, **arguments))
    return losses


def loss(
    name: str,
    S: Tensor,
    *,
    query_ids: list[int] | None = None,
    candidate_ids: list[int] | None = None,
    margins: list[float] | None = None,
    reduction: str = "mean",
    **arguments: object,
) -> Tensor:
    queries, candidates = rows(S, query_ids, candidate_ids, margins)
    result = S.new_zeros(())
    for anchors in (queries, candidates):
        part = total(anchor_losses(name, anchors, **arguments), result)
        result = result + (part / len(anchors) if reduction == "mean" else part)
    return result


def directed_weights(
    name: str,
    S: Tensor,
    *,
    query_ids: list[int] | None = None,
    candidate_ids: list[int] | None = None,
    margins: list[float] | None = None,
    reduction: str = "mean",
    **arguments: object,
) -> tuple[Tensor, Tensor]:
    """∂L/∂S [B, B'] (W itself of `goal`): what the queries ask for as anchors, and what the candidates do."""
    S = S.detach().requires_grad_()
    queries, candidates = rows(S, query_ids, candidate_ids, margins)
    if name == "goal":
        asked = goal_weights(queries, **arguments), goal_weights(candidates, **arguments).T
    else:
        sums = [total(anchor_losses(name, anchors, **arguments), S[0, 0]) for anchors in (queries, candidates)]
        asked = torch.autograd.grad(sums[0], S)[0], torch.autograd.grad(sums[1], S)[0]
    return (asked[0] / len(queries), asked[1] / len(candidates)) if reduction == "mean" else asked


def pair_weights(name: str, S: Tensor, **arguments: object) -> Tensor:
    """∂L/∂S [B, B'] of the loss, and W itself of `goal`."""
    of_queries, of_candidates = directed_weights(name, S, **arguments)
    return of_queries + of_candidates


# --- what is compared: (name, arguments of make()) -------------------------------------------------------------------

SINGLE_CASES: list[tuple[str, dict[str, object]]] = [
    ("triplet", {"margin": 0.3}),
    ("triplet_hn", {"margin": 0.3}),
    ("vlc", {"scale": 12.0}),
    ("nt_xent", {"temperature": 0.07}),
    ("nt_xent_hn", {"tau": 8.0}),
    ("unified", {"margin": 0.15, "scale": 20.0}),
    *(
        ("unified", {"margin": 0.15, "scale": 20.0, "weighting": weighting, "detach_weights": detach, **polynomials})
        for weighting, polynomials in (
            ("linear", {}),
            ("sigmoid", {}),
            ("ssp", {}),
            ("ssp", {"positive": (0.9, -0.3, 0.1), "negative": (0.4, 0.2, 0.5)}),
            ("rsp", {}),
            ("rsp", {"coefficients": (0.8, 0.5, 0.3)}),
        )
        for detach in (True, False)
    ),
    ("ssp", {}),
    ("ssp", {"margin": 0.4, "positive": (0.6, -0.5, 0.1), "negative": (0.05, 0.3, 0.7)}),
    ("rsp", {"margin": 0.3}),
    ("rsp", {"margin": 0.1, "coefficients": (0.2, -0.4, 0.9)}),  # not monotone: the hardest negative is not its argmax
]
SET_CASES: list[tuple[str, dict[str, object]]] = [
    ("circle", {}),
    ("circle", {"margin": 0.4, "scale": 20.0}),
    ("binomial_deviance", {}),
    ("binomial_deviance", {"alpha": 3.0, "beta": 10.0, "threshold": 0.2}),
    ("lifted", {}),
    ("lifted", {"alpha": 10.0, "beta": 5.0}),
    ("multi_similarity", {}),
    ("multi_similarity", {"alpha": 3.0, "beta": 10.0, "threshold": 0.2, "epsilon": 0.3}),
    ("smooth_ap", {}),
    ("smooth_ap", {"temperature": 0.2}),
]
TRIPLET_WEIGHTS = ("con", "nca", "cir")
PAIR_WEIGHTS = ("con", "lin", "sig", "lin_ms", "sig_ms")
GOAL_CASES: list[tuple[str, dict[str, object]]] = [
    *(("goal", {"triplet": t, "pair": p}) for t in TRIPLET_WEIGHTS for p in PAIR_WEIGHTS),
    ("goal", {"margin": None}),
    ("goal", {"triplet": "cir", "pair": "sig", "offset": 0.5, "tau": 6.0, "threshold": 0.3}),
    ("goal", {"triplet": "nca", "pair": "sig_ms", "alpha": 3.0, "beta": 5.0, "epsilon": 0.5}),
    ("goal", {"triplet": "con", "pair": "lin_ms", "margin": 0.6, "epsilon": 0.6}),
]
CASES = [*SINGLE_CASES, *SET_CASES, *GOAL_CASES]
