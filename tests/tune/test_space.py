"""Domains: what a search file may say of a key."""

import pytest
from pydantic import ValidationError

from tune.config import Search
from tune.space import Domain, describe


def search(space: dict, **more: object) -> Search:
    return Search.model_validate({"name": "s", "base": "b.yaml", "space": space, **more})


@pytest.mark.parametrize(
    ("domain", "low", "high"),
    [
        (Domain(uniform=(0.1, 0.3)), 0.1, 0.3),
        (Domain(loguniform=("1e-4", 1e-2)), 1e-4, 1e-2),
        (Domain(quniform=(10, 60, 5)), 10, 60),
        (Domain(randint=(1, 3)), 1, 3),
    ],
)
def test_ranges_are_probed_at_their_ends(domain: Domain, low: float, high: float) -> None:
    assert domain.probes == (low, high)


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert Domain(grid=["1e-4", "2E3", "vlc", "1e"]).probes == (1e-4, 2e3, "vlc", "1e")


def test_a_list_is_probed_at_the_ends_of_all_its_elements() -> None:
    assert Domain(each=[0, {"uniform": [1, 2]}, {"choice": [5, 6, 7]}]).probes == ([0, 1, 5], [0, 2, 6], [0, 2, 7])


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "exactly one of grid, choice"),
        ({"when": {"a": 1}}, "exactly one of grid, choice"),
        ({"grid": [1], "choice": [1]}, "exactly one of grid, choice"),
        ({"grid": []}, "at least 1"),
        ({"uniform": [0.3, 0.1]}, "low 0.3 must be less than high 0.1"),
        ({"loguniform": [0, 1]}, "low 0.0 must be positive"),
        ({"quniform": [0, 1, 2]}, "step 2.0 must be positive and fit"),
        ({"randint": [1.5, 3]}, "valid integer"),
        ({"each": [0, {"grid": [1]}]}, "each: accepted are numbers, choices and ranges"),
        ({"each": [{"each": [1]}]}, "each: accepted are numbers, choices and ranges"),
        ({"choice": [1], "when": {}}, "at least 1"),
        ({"choice": [1], "when": {"a": 1, "b": 2}}, "at most 1"),
        ({"grd": [1]}, "Extra inputs"),
    ],
)
def test_impossible_domains_are_refused(declared: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Domain(**declared)


SCHEMES = {"objective.weighting": {"choice": ["none", "sigmoid", "rsp"]}}


def under(when: dict, **space: dict) -> dict:
    return {**space, "objective.alpha": {"uniform": [1, 4], "when": when}}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            SCHEMES | under({"objective.weightin": "sigmoid"}),
            r"space\.objective\.alpha\.when: objective\.weightin is no key further up.*'objective\.weighting'\?",
        ),
        (under({"objective.weighting": "sigmoid"}) | SCHEMES, "is no key further up in the space; it has none"),
        (
            SCHEMES | under({"objective.weighting": "sigmod"}),
            "objective.weighting is never 'sigmod'; did you mean 'sigmoid'",
        ),
        (SCHEMES | under({"objective.weighting": ["rsp", "x"]}), "is never 'x'; accepted: none, rsp, sigmoid"),
        ({"a.b": {"uniform": [0, 1]}} | under({"a.b": 1}), "a.b is a range; accepted is a key with a list"),
    ],
)
def test_a_condition_that_is_never_met_is_refused(space: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        search(space, algorithm="random", trials=1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"references": [{}]}, r"references\[0\]: empty"),
        ({"references": ["vlc"]}, "valid dictionary"),
        ({"references": [{"run.name": "a"}]}, "run.name is set by the search"),
        ({"references": [{"train.seed": 1}], "seeds": 2}, "train.seed is searched already"),
        ({"references": [{"objective": {"name": "vlc"}}], "scheduler": "asha"}, "asha would stop them early"),
        (
            {
                "references": [{"objective": {"name": "vlc"}}],
                "algorithm": "optuna",
                "trials": 1,
                "space": {"objective.margin": {"uniform": [0, 1]}},
            },
            "optuna would learn from them",
        ),
        ({"algorithm": "one_at_a_time", "trials": 2}, "one_at_a_time has as many trials as its lists make"),
        (
            {
                "algorithm": "one_at_a_time",
                "space": {"a.b": {"grid": [1]}, "a.c": {"grid": [1], "when": {"a.b": 1}}},
            },
            "one_at_a_time varies no other key",
        ),
        ({"algorithm": "one_at_a_time", "space": {"a.b": {"uniform": [0, 1]}}}, "one_at_a_time takes grid only"),
    ],
)
def test_what_does_not_go_together_is_refused(more: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        search(**{"space": {"objective.margin": {"grid": [0.1]}}} | more)


def test_a_trial_is_called_by_its_values() -> None:
    assert describe({"objective": {"name": "vlc", "scale": 20}}) == "vlc(scale=20)"
    values = {"objective.weighting": "rsp", "objective.coefficients": [0, 1.23456, 0.5]}
    assert describe(values) == "weighting=rsp coefficients=[0, 1.23, 0.5]"
