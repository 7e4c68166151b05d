"""What the trials of a search set, and what Ray Tune and Optuna make of it."""

import pickle
from collections import Counter
from pathlib import Path

import pytest
import ray.tune
import yaml

from allpairs.errors import UserError
from tune.config import Search, load_search
from tune.points import Point, combinations, draws, one_at_a_time, probe_points
from tune.runner import make_searcher, param_space
from tune.space import Domain
from tune.trial import TrialPlan

CONDITIONAL = {
    "objective.weighting": Domain(choice=["none", "sigmoid", "rsp"]),
    "objective.alpha": Domain(uniform=[1, 4], when={"objective.weighting": "sigmoid"}),
    "objective.coefficients": Domain(
        each=[0, {"uniform": [0.5, 2]}, {"choice": [0.0, 1.0]}], when={"objective.weighting": "rsp"}
    ),
    "objective.detach_weights": Domain(choice=[True, False], when={"objective.weighting": ["sigmoid", "rsp"]}),
    "optimizer.lr": Domain(loguniform=[1e-4, 1e-2]),
}
KEYS = {
    "none": {"objective.weighting", "optimizer.lr"},
    "sigmoid": {"objective.weighting", "objective.alpha", "objective.detach_weights", "optimizer.lr"},
    "rsp": {"objective.weighting", "objective.coefficients", "objective.detach_weights", "optimizer.lr"},
}


def plan(declared: dict, base: dict | None = None) -> TrialPlan:
    return TrialPlan(Search.model_validate({"name": "s", "base": "b.yaml", **declared}), base or {}, Path())


def handed_out(search: TrialPlan) -> list[Point]:
    """The points of the trials that Ray Tune makes."""
    generator = make_searcher(search.search)
    generator.add_configurations(
        ray.tune.Experiment("x", lambda config: None, config=param_space(search), storage_path="/nowhere")
    )
    found = []
    while (trial := generator.next_trial()) is not None:
        found.append(Point.decode(trial.config))
    return found


def check_conditions(points: list[dict]) -> None:
    """Every scheme came, with its own keys and no others, within their ranges."""
    assert {point["objective.weighting"] for point in points} == set(KEYS)
    for point in points:
        assert set(point) == KEYS[point["objective.weighting"]]
        assert 1 <= point.get("objective.alpha", 1) <= 4
        zero, linear, quadratic = point.get("objective.coefficients", [0, 1, 1.0])
        assert zero == 0
        assert 0.5 <= linear <= 2
        assert quadratic in (0.0, 1.0)
        assert 1e-4 <= point["optimizer.lr"] <= 1e-2


def test_grid_of_numbers_sections_lists_and_null_comes_back_as_it_was() -> None:
    objectives = [{"name": "triplet_hn", "margin": 0.2}, {"name": "vlc", "scale": 20}]
    space = {
        "objective": {"grid": objectives},
        "optimizer.betas": {"grid": [[0.9, 0.999], [0.9, 0.98]]},
        "optimizer.clip_norm": {"grid": [None]},
    }
    found = [point.values for point in handed_out(plan({"space": space}))]
    assert found == [
        {"objective": objective, "optimizer.betas": betas, "optimizer.clip_norm": None}
        for objective in objectives
        for betas in ([0.9, 0.999], [0.9, 0.98])
    ]


def test_a_grid_under_a_condition_multiplies_only_where_it_is_met() -> None:
    space = {
        "objective.name": Domain(grid=["vlc", "triplet_hn"]),
        "train.triplet_warmup_epochs": Domain(grid=[0, 2], when={"objective.name": "triplet_hn"}),
        "train.seed": Domain(grid=[5]),
    }
    assert combinations(space) == [
        {"objective.name": "vlc", "train.seed": 5},
        {"objective.name": "triplet_hn", "train.triplet_warmup_epochs": 0, "train.seed": 5},
        {"objective.name": "triplet_hn", "train.triplet_warmup_epochs": 2, "train.seed": 5},
    ]


def test_one_key_at_a_time_passes_through_home_once() -> None:
    space = {"m": Domain(grid=[0, 0.2]), "g": Domain(grid=[10, 20, 60])}
    assert one_at_a_time(space, {"m": 0.2, "g": 20}) == [
        {"m": 0, "g": 20},
        {"m": 0.2, "g": 20},
        {"m": 0.2, "g": 10},
        {"m": 0.2, "g": 60},
    ]


def test_draws_are_within_their_ranges_and_follow_the_seed() -> None:
    space = {
        "u": Domain(uniform=[0.1, 0.3]),
        "l": Domain(loguniform=[1e-4, 1e-2]),
        "q": Domain(quniform=[12, 61, 5]),
        "i": Domain(randint=[1, 3]),
        "c": Domain(choice=[[1], {"name": "vlc"}]),
    }
    points = draws(space, 300, seed=0)
    assert len(points) == 300
    assert points == draws(space, 300, seed=0)
    assert points[0] != draws(space, 1, seed=1)[0]
    assert all(0.1 <= point["u"] <= 0.3 and 1e-4 <= point["l"] <= 1e-2 for point in points)
    assert {point["q"] for point in points} == set(range(15, 65, 5))
    assert {point["i"] for point in points} == {1, 2, 3}
    assert sum(point["l"] < 1e-3 for point in points) == pytest.approx(150, abs=40)
    assert {str(point["c"]) for point in points} == {"[1]", "{'name': 'vlc'}"}


def test_no_draw_comes_twice_and_a_small_space_ends_them() -> None:
    space = {"w": Domain(choice=["linear", "ssp"]), "d": Domain(choice=[True, False], when={"w": "linear"})}
    points = draws(space, 20, seed=0)
    assert sorted(map(str, points)) == ["{'w': 'linear', 'd': False}", "{'w': 'linear', 'd': True}", "{'w': 'ssp'}"]
    assert plan({"algorithm": "random", "trials": 20, "space": {"train.seed": {"choice": [1, 2]}}}).count == 2


def test_a_coefficient_is_drawn_only_under_its_choice() -> None:
    check_conditions(draws(CONDITIONAL, 60, seed=0))
    check_conditions(probe_points(CONDITIONAL))
    probes = probe_points(CONDITIONAL)
    assert {point["objective.alpha"] for point in probes if "objective.alpha" in point} == {1, 4}
    assert {str(point.get("objective.coefficients")) for point in probes} >= {"[0.0, 0.5, 0.0]", "[0.0, 2.0, 1.0]"}


def test_optuna_asks_for_a_coefficient_only_under_its_choice() -> None:
    space = {key: domain.model_dump(exclude_unset=True) for key, domain in CONDITIONAL.items()}
    searcher = make_searcher(plan({"space": space, "algorithm": "optuna", "trials": 40}).search)
    searcher = pickle.loads(pickle.dumps(searcher))  # as Ray keeps it, for a search that goes on
    points, asked = [], Counter()
    for number in range(40):
        parameters = searcher.suggest(str(number))
        points.append(dict(Point.decode(parameters).values))
        asked[frozenset(key.partition("[")[0] for key in parameters if key.startswith("obj"))] += 1
        searcher.on_trial_complete(str(number), {"val/rsum": float(number)})
    check_conditions(points)
    assert set(asked) == {frozenset(keys - {"optimizer.lr"}) for keys in KEYS.values()}


def test_references_stand_beside_the_points_and_every_seed_gets_the_same_draws() -> None:
    vlc = {"objective": {"name": "vlc", "scale": 20}}
    declared = {
        "algorithm": "random",
        "trials": 3,
        "seeds": 2,
        "space": {"objective.margin": {"uniform": [0, 1]}},
        "references": [vlc],
    }
    search = plan(declared, {"train": {"seed": 7}})
    found = handed_out(search)
    assert found == search.points
    assert search.count == len(found) == 8
    assert [point.values["train.seed"] for point in found] == [7] * 4 + [8] * 4
    assert [point.reference for point in found] == [False, False, False, True] * 2
    assert found[3].values == {**vlc, "train.seed": 7}
    assert len({point.values["objective.margin"] for point in found[:3]}) == 3
    assert [point.values.get("objective.margin") for point in found[:4]] == [
        point.values.get("objective.margin") for point in found[4:]
    ]


BASE = {"run": {"name": "base"}, "objective": {"name": "unified", "margin": 0.2}, "train": {"global_batch": 32}}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"references": [{"objective": {"name": "triplet_nh"}}]}, "with triplet_nh: .*did you mean 'triplet_hn'"),
        ({"references": [{"objective.marign": 0.1}]}, r"objective\.marign.*did you mean 'margin'"),
        ({"references": [{"objetive": {"name": "vlc"}}]}, "objetive: unknown key.*did you mean 'objective"),
        (
            {
                "algorithm": "one_at_a_time",
                "space": {"objective.margin": {"grid": [0]}, "objective.scale": {"grid": [9]}},
            },
            r"objective\.scale: one_at_a_time keeps it while other keys vary, and neither base\.yaml nor overrides",
        ),
        (
            {
                "algorithm": "random",
                "trials": 1,
                "space": {
                    "objective.weighting": {"choice": ["rsp"]},
                    "objective.coefficients": {
                        "each": [0, {"uniform": [1, 2]}],
                        "when": {"objective.weighting": "rsp"},
                    },
                },
            },
            r"with weighting=rsp coefficients=\[0, 1\]: objective\.coefficients=",
        ),
    ],
)
def test_mistakes_of_references_and_conditions_are_one_line(
    declared: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    space = {"objective.margin": {"grid": [0.1]}}
    Path("search.yaml").write_text(
        yaml.safe_dump({"name": "s", "base": "base.yaml", "space": space} | declared, sort_keys=False)
    )
    with pytest.raises(UserError, match=message) as caught:
        TrialPlan.of(load_search(Path("search.yaml"))).check()
    assert "\n" not in str(caught.value)
