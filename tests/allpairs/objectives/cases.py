"""The one table of the objectives' tests: what each is compared with, and under which settings.

An objective that is missing here fails `test_catalogue.py`; one that is here is compared with its formula (value,
gradient, pair weights, tiles), across ranks, by the fused kernels, for the properties that hold for every batch, and at
extreme scores.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.allpairs.objectives import reference
from tests.allpairs.objectives.reference import Row, goal_weights, rows, total

Arguments = dict[str, Any]
TRIPLET_WEIGHTS = ("con", "nca", "cir")
PAIR_WEIGHTS = ("con", "lin", "sig", "lin_ms", "sig_ms")
_GOALS = [{"triplet": t, "pair": p} for t, p in itertools.product(TRIPLET_WEIGHTS, PAIR_WEIGHTS)]
_SCHEMES = ("linear", "sigmoid")


@dataclass(frozen=True)
class Case:
    """How one objective is tested; settings are arguments of `make`.

    Attributes:
        formula: f(i) of one row, written out; None for `goal`, given by its weights (`reference.goal_weights`).
        settings: compared with the formula.
        extreme: must stay finite at scores in [−2, 2].
        worlds: across ranks; one with the key "margins" gets a margin per pair.
        kernels: by the fused kernels.
        positives_by_ids: takes its positives from ids, so lengths may differ.
        margins: takes one margin per pair.
        gentle: where float32 scores alone would move the loss by more than 1e-5.
    """

    formula: Callable[..., Tensor] | None
    settings: list[Arguments]
    extreme: list[Arguments]
    worlds: list[Arguments]
    kernels: list[Arguments] = field(default_factory=list)
    positives_by_ids: bool = False
    margins: bool = False
    gentle: Arguments = field(default_factory=dict)


TABLE: dict[str, Case] = {
    "triplet": Case(
        reference.triplet, [{"margin": 0.3}], [{"margin": 2.0}], [{"margin": 0.3}, {"margins": True}], margins=True
    ),
    "triplet_hn": Case(
        reference.triplet_hn,
        [{"margin": 0.3}],
        [{"margin": 2.0}],
        [{"margin": 0.3}, {"margins": True}],
        [{"margin": 0.3}],
        margins=True,
    ),
    "vlc": Case(
        reference.vlc,
        [{"scale": 12.0}],
        [{"scale": 1000.0}],
        [{"scale": 12.0}, {"scale": 12.0, "learn_scale": True}],
        [{"scale": 20.0}, {"scale": 100.0}, {"scale": 1 / 0.07, "learn_scale": True}],
    ),
    "nt_xent": Case(
        reference.nt_xent, [{"temperature": 0.07}], [{"temperature": 0.001}], [{}], [{"temperature": 0.07}]
    ),
    "nt_xent_hn": Case(reference.nt_xent_hn, [{"tau": 8.0}], [{"tau": 1000.0}], [{}], [{}]),
    "unified": Case(
        reference.unified,
        [
            {"margin": 0.15, "scale": 20.0},
            *(
                {"margin": 0.15, "scale": 20.0, "weighting": weighting, "detach_weights": detach, **constants}
                for weighting, constants in (
                    ("linear", {}),
                    ("sigmoid", {}),
                    ("sigmoid", {"alpha": 3.0, "beta": 6.0, "threshold": 0.3}),
                )
                for detach in (True, False)
            ),
            *(
                {"margin": 0.15, "scale": 20.0, "weighting": weighting, **polynomials}
                for weighting, polynomials in (
                    ("ssp", {}),
                    ("ssp", {"positive": (0.9, -0.3, 0.1), "negative": (0.4, 0.2, 0.5), "detach_weights": False}),
                    ("rsp", {}),
                    ("rsp", {"coefficients": (0.8, 0.5, 0.3)}),
                )
            ),
        ],
        [
            {"margin": 2.0, "scale": 1000.0, "weighting": weighting, "detach_weights": detach}
            for weighting in ("none", "linear", "sigmoid", "ssp", "rsp")
            for detach in (True, False)
            if detach or weighting in _SCHEMES
        ],
        [
            {"margin": 0.2, "scale": 20.0},
            {"scale": 20.0, "margins": True},
            {"scale": 20.0, "weighting": "linear"},
            {"scale": 20.0, "weighting": "sigmoid", "detach_weights": False},
            {"scale": 20.0, "weighting": "ssp", "margins": True},
            {"scale": 20.0, "weighting": "rsp", "coefficients": (0.3, 0.5, 0.2)},
        ],
        [{"margin": 0.2, "scale": 20.0}],
        margins=True,
    ),
    "ssp": Case(
        reference.ssp,
        [{}, {"margin": 0.4, "positive": (0.6, -0.5, 0.1), "negative": (0.05, 0.3, 0.7)}],
        [{"margin": 2.0}],
        [{"margin": 0.5}],
        [{"margin": 0.5}],
        margins=True,
    ),
    "rsp": Case(
        reference.rsp,
        # The second is not monotone: the hardest negative is not its argmax.
        [{"margin": 0.3}, {"margin": 0.1, "coefficients": (0.2, -0.4, 0.9)}],
        [{"margin": 2.0, "coefficients": (1.0, 1.0, 1.0)}],
        [{"margin": 0.5, "coefficients": (0.1, 1.0, -0.3)}],
        margins=True,
    ),
    "circle": Case(
        reference.circle,
        [{}, {"margin": 0.4, "scale": 20.0}],
        [{"scale": 1000.0}],
        [{"scale": 20.0}],
        positives_by_ids=True,
        gentle={"scale": 20.0},
    ),
    "binomial_deviance": Case(
        reference.binomial_deviance,
        [{}, {"alpha": 3.0, "beta": 10.0, "threshold": 0.2}],
        [{"alpha": 1000.0, "beta": 1000.0}],
        [{"beta": 10.0}],
        positives_by_ids=True,
    ),
    "lifted": Case(
        reference.lifted,
        [{}, {"alpha": 10.0, "beta": 5.0}],
        [{"alpha": 1000.0, "beta": 1000.0}],
        [{}],
        positives_by_ids=True,
    ),
    "multi_similarity": Case(
        reference.multi_similarity,
        [{}, {"alpha": 3.0, "beta": 10.0, "threshold": 0.2, "epsilon": 0.3}],
        [{"alpha": 1000.0, "beta": 1000.0, "epsilon": 1.0}],
        [{}],
        positives_by_ids=True,
    ),
    "siglip": Case(
        reference.siglip,
        [{}, {"scale": 5.0, "bias": -1.0}],
        [{"scale": 1000.0, "bias": -100.0}],
        [{"scale": 5.0, "bias": -2.0}, {"scale": 5.0, "bias": -2.0, "learn_scale": True}],
        [{"scale": 80.0, "bias": -20.0}, {"learn_scale": True}],
        positives_by_ids=True,
    ),
    "smooth_ap": Case(
        reference.smooth_ap,
        [{}, {"temperature": 0.2}],
        [{"temperature": 0.001}],
        [{"temperature": 0.1}],
        positives_by_ids=True,
        gentle={"temperature": 0.2},
    ),
    "goal": Case(
        None,
        [
            *_GOALS,
            {"margin": None},
            {"triplet": "cir", "pair": "sig", "offset": 0.5, "tau": 6.0, "threshold": 0.3},
            {"triplet": "nca", "pair": "sig_ms", "alpha": 3.0, "beta": 5.0, "epsilon": 0.5},
            {"triplet": "con", "pair": "lin_ms", "margin": 0.6, "epsilon": 0.6},
        ],
        # GOAL takes no α or β above 20: e^{20·4} is near the end of float32.
        [{**goal, "margin": 2.0, "tau": 1000.0, "alpha": 20.0, "beta": 20.0} for goal in _GOALS],
        _GOALS,
        [{"triplet": "nca", "pair": "lin"}, {"triplet": "cir", "pair": "sig_ms"}],
    ),
}

CASES = [(name, arguments) for name, case in TABLE.items() for arguments in case.settings]
EXTREME = [(name, arguments) for name, case in TABLE.items() for arguments in case.extreme]
SETS = tuple(name for name, case in TABLE.items() if case.positives_by_ids)
WITH_MARGIN = tuple(name for name, case in TABLE.items() if case.margins)


def label(name: str, arguments: Arguments) -> str:
    """Name a case for a test's id."""
    return "-".join([name, *(f"{key}={value}" for key, value in arguments.items())])


# --- the whole objective, from the formula of a row ------------------------------------------------------------------


def anchor_losses(name: str, anchors: list[Row], **arguments: object) -> list[Tensor]:
    """f(i) of each anchor; `goal`'s surrogate is h − d. One positive, but no negative: 0."""
    formula = TABLE[name].formula
    if TABLE[name].positives_by_ids:
        return [formula(row, **arguments) for row in anchors]
    losses = []
    for row in anchors:
        if not row.negatives:
            losses.append(row.d * 0)
        elif formula is None:
            losses.append(row.s[row.hardest] - row.d)
        else:
            losses.append(formula(row, **arguments))
    return losses


def loss(
    name: str,
    S: Tensor,
    *,
    query_ids: list[int] | None = None,
    candidate_ids: list[int] | None = None,
    margins: list[float] | None = None,
    text_ids: list[int] | None = None,
    reduction: str = "mean",
    **arguments: object,
) -> Tensor:
    queries, candidates = rows(
        S, query_ids, candidate_ids, margins, text_ids=text_ids, by_ids=TABLE[name].positives_by_ids
    )
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
    text_ids: list[int] | None = None,
    reduction: str = "mean",
    **arguments: object,
) -> tuple[Tensor, Tensor]:
    """∂L/∂S [B, B'] (W itself of `goal`): what the queries ask for as anchors, and what the candidates do."""
    S = S.detach().requires_grad_()
    queries, candidates = rows(
        S, query_ids, candidate_ids, margins, text_ids=text_ids, by_ids=TABLE[name].positives_by_ids
    )
    if TABLE[name].formula is None:
        asked = goal_weights(queries, **arguments), goal_weights(candidates, **arguments).T
    else:
        sums = [total(anchor_losses(name, anchors, **arguments), S[0, 0]) for anchors in (queries, candidates)]
        asked = torch.autograd.grad(sums[0], S)[0], torch.autograd.grad(sums[1], S)[0]
    return (asked[0] / len(queries), asked[1] / len(candidates)) if reduction == "mean" else asked


def pair_weights(name: str, S: Tensor, **arguments: object) -> Tensor:
    """∂L/∂S [B, B'] of the loss, and W itself of `goal`."""
    of_queries, of_candidates = directed_weights(name, S, **arguments)
    return of_queries + of_candidates
