"""Domains: what a search file may say, and what Ray Tune then draws."""

import random

import pytest
import ray.tune
from pydantic import ValidationError
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.variant_generator import generate_variants

from distributed.config import validate
from tune.config import Search
from tune.runner import make_searcher, param_space
from tune.space import Domain, combinations, decode, one_at_a_time


def variants(space: dict[str, Domain]) -> list[dict]:
    """The trials Ray Tune makes of `space`."""
    spec = {key: domain.to_ray() for key, domain in space.items()}
    return [decode(values) for _, values in generate_variants(spec)]


def test_grid_of_numbers_and_sections_comes_back_as_it_was() -> None:
    objectives = [{"name": "triplet_hn", "margin": 0.2}, {"name": "vlc", "scale": 20}]
    space = {"objective": Domain(grid=objectives), "train.seed": Domain(grid=[0, 1])}
    expected = [{"objective": objective, "train.seed": seed} for objective in objectives for seed in (0, 1)]
    found = variants(space)
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert combinations(space) == expected


def test_lists_and_null_are_values_too() -> None:
    space = {"optimizer.betas": Domain(grid=[[0.9, 0.999], [0.9, 0.98]]), "optimizer.clip_norm": Domain(grid=[None])}
    assert {str(values["optimizer.betas"]) for values in variants(space)} == {"[0.9, 0.999]", "[0.9, 0.98]"}
    assert all(values["optimizer.clip_norm"] is None for values in variants(space))


@pytest.mark.parametrize(
    ("domain", "low", "high"),
    [
        (Domain(uniform=(0.1, 0.3)), 0.1, 0.3),
        (Domain(loguniform=("1e-4", 1e-2)), 1e-4, 1e-2),
        (Domain(quniform=(10, 60, 5)), 10, 60),
        (Domain(randint=(1, 3)), 1, 3),
    ],
)
def test_ranges_stay_within_their_ends(domain: Domain, low: float, high: float) -> None:
    drawn = [domain.to_ray().sample() for _ in range(200)]
    assert low <= min(drawn) <= max(drawn) <= high
    assert domain.probes == (low, high)


def test_randint_includes_both_ends_and_quniform_keeps_its_step() -> None:
    random.seed(0)
    assert set(Domain(randint=(1, 3)).to_ray().sample(size=200)) == {1, 2, 3}
    assert all(value % 5 == 0 for value in Domain(quniform=(10, 60, 5)).to_ray().sample(size=50))


def test_draws_follow_the_seed() -> None:
    def draw(seed: int) -> list[float]:
        searcher = BasicVariantGenerator(random_state=seed)
        space = {"optimizer.lr": Domain(loguniform=(1e-4, 1e-2)).to_ray()}
        searcher.add_configurations({"x": {"run": lambda config: None, "config": space, "num_samples": 3}})
        return [searcher.next_trial().config["optimizer.lr"] for _ in range(3)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert Domain(grid=["1e-4", "2E3", "vlc", "1e"]).probes == (1e-4, 2e3, "vlc", "1e")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "exactly one of grid, choice"),
        ({"grid": [1], "choice": [1]}, "exactly one of grid, choice"),
        ({"grid": []}, "at least 1"),
        ({"uniform": [0.3, 0.1]}, "low 0.3 must be less than high 0.1"),
        ({"loguniform": [0, 1]}, "low 0.0 must be positive"),
        ({"quniform": [0, 1, 2]}, "step 2.0 must be positive and fit"),
        ({"randint": [1.5, 3]}, "valid integer"),
        ({"grd": [1]}, "Extra inputs"),
    ],
)
def test_impossible_domains_are_refused(declared: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Domain(**declared)


def test_probes_one_at_a_time_show_every_value_once() -> None:
    space = {"a": Domain(choice=[1, 2, 3]), "b": Domain(uniform=(0.0, 1.0))}
    probes = one_at_a_time(space)
    assert {probe["a"] for probe in probes} == {1, 2, 3}
    assert {probe["b"] for probe in probes} == {0.0, 1.0}
    assert len(probes) == 5


def test_optuna_takes_encoded_sections() -> None:
    from ray.tune.search.optuna import OptunaSearch

    objectives = [{"name": "triplet_hn", "margin": 0.2}, {"name": "vlc", "scale": 20}]
    searcher = OptunaSearch(metric="val/rsum", mode="max", seed=0)
    space = {"objective": Domain(choice=objectives).to_ray(), "optimizer.lr": Domain(loguniform=(1e-4, 1e-2)).to_ray()}
    assert searcher.set_search_properties("val/rsum", "max", space)
    values = decode(searcher.suggest("first"))
    assert values["objective"] in objectives
    assert 1e-4 <= values["optimizer.lr"] <= 1e-2


def test_every_seed_gets_the_same_draws() -> None:
    search = Search.model_validate(
        {
            "name": "s", "base": "b.yaml", "algorithm": "random", "trials": 3, "seeds": 2,
            "space": {"objective.margin": {"uniform": [0, 1]}},
        }
    )  # fmt: skip
    config = validate({"run": {"name": "r"}, "train": {"seed": 7}})
    space = param_space(search, config)
    generator = make_searcher(search)
    generator.add_configurations(
        ray.tune.Experiment("x", lambda config: None, config=space, num_samples=3, storage_path="/nowhere")
    )
    drawn = []
    while (trial := generator.next_trial()) is not None:
        drawn.append((trial.config["objective.margin"], trial.config["train.seed"]))
    assert [seed for _, seed in drawn] == [7, 8] * 3
    assert len({margin for margin, _ in drawn}) == 3
    assert all(drawn[2 * n][0] == drawn[2 * n + 1][0] for n in range(3))
