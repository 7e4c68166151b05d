"""The formulas of the papers written out with Python loops over float64 scalars, sharing no code with the library.

U: unified loss, G: GOAL, C: COCOS. An anchor is one row of the scores: of S for queries, of its transpose for
candidates. Everything is differentiable; `goal`, which is no loss, gives its weights directly (`goal_weights`).
"""

from collections.abc import Iterable
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
    *,
    text_ids: list[int] | None = None,
    by_ids: bool = False,
) -> tuple[list[Row], list[Row]]:
    """Anchors of both directions. Without ids row i matches row i; ids of one side then stand for the other's too.

    What a candidate says (`text_ids`) takes it from the negatives of the queries whose positives say it: the own pair,
    or with `by_ids` all of the query's id.
    """
    n_queries, n_candidates = len(S), len(S[0])
    if query_ids is None and candidate_ids is None:
        query_ids, candidate_ids = list(range(n_queries)), list(range(n_candidates))
    query_ids = candidate_ids if query_ids is None else query_ids
    candidate_ids = query_ids if candidate_ids is None else candidate_ids
    assert query_ids is not None
    assert candidate_ids is not None
    own_scores = [S[k, k] for k in range(n_queries)] if n_queries == n_candidates else []

    def negative(i: int, j: int) -> bool:
        """Whether query i and candidate j are negatives of each other."""
        if query_ids[i] == candidate_ids[j]:
            return False
        positives = [k for k in range(n_candidates) if candidate_ids[k] == query_ids[i]] if by_ids else [i]
        return text_ids is None or all(text_ids[k] != text_ids[j] for k in positives)

    def margin(i: int) -> float | None:
        return None if margins is None else margins[i]

    def of_query(i: int) -> Row:
        others = range(n_candidates)
        positives = [j for j in others if query_ids[i] == candidate_ids[j]]
        negatives = [j for j in others if negative(i, j)]
        return Row([S[i, j] for j in others], i, positives, negatives, own_scores, margin(i))

    def of_candidate(j: int) -> Row:
        others = range(n_queries)
        positives = [i for i in others if query_ids[i] == candidate_ids[j]]
        negatives = [i for i in others if negative(i, j)]
        return Row([S[i, j] for i in others], j, positives, negatives, own_scores, margin(j))

    return [of_query(i) for i in range(n_queries)], [of_candidate(j) for j in range(n_candidates)]


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
    alpha: float = 2.0,
    beta: float = 10.0,
    threshold: float = 0.5,
    positive: tuple[float, float, float] = SSP_POSITIVE,
    negative: tuple[float, float, float] = SSP_NEGATIVE,
    coefficients: tuple[float, float, float] = (0.0, 1.0, 0.0),
    detach_weights: bool = True,
) -> Tensor:
    """U-Eq. 5; with a weighting U-Eq. 24, or U-Eq. 25, whose polynomials are the weighted similarities themselves."""

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
            of_negative = 1 / (1 + torch.exp(-beta * (s - threshold)))
            of_positive = 1 / (1 + torch.exp(alpha * (d - threshold)))
            difference = weight(of_negative) * s - weight(of_positive) * d
        elif weighting == "ssp":
            difference = polynomial(negative, s) + polynomial(positive, d)
        else:
            assert weighting == "rsp"
            difference = polynomial(coefficients, s - d)
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


def siglip(row: Row, scale: float = 10.0, bias: float = -10.0, learn_scale: bool = False) -> Tensor:
    """Zhai et al. 2023; half of it, as every pair is in a row and in a column."""
    losses = [log_one_plus_exps([-(scale * row.s[j] + bias)]) for j in row.positives]
    losses += [log_one_plus_exps([scale * row.s[j] + bias]) for j in row.negatives]
    return total(losses, row.s[0]) / 2


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
