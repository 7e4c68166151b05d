"""Search files and their arguments: what is accepted, what becomes of it, and how mistakes are told."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from allpairs.errors import UserError
from distributed.config import load as load_run
from tune.config import Search, load_search
from tune.trial import TrialPlan

ROOT = Path(__file__).resolve().parents[2]
BASE = {
    "run": {"name": "base"},
    "objective": {"name": "unified", "margin": 0.2, "scale": 20},
    "optimizer": {"lr": 2e-3},
    "train": {"epochs": 8, "global_batch": 32},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(declared: dict, *arguments: str) -> Search:
    Path("search.yaml").write_text(yaml.safe_dump({"name": "s", "base": "base.yaml"} | declared))
    return load_search(Path("search.yaml"), arguments)


def check(declared: dict, *arguments: str) -> list:
    return TrialPlan.of(load(declared, *arguments)).check()


def test_trial_is_the_base_with_overrides_and_values(folder: Path) -> None:
    space = {"objective.margin": {"grid": [0.1, 0.3]}, "optimizer.lr": {"grid": ["1e-5"]}}
    search = load({"space": space, "overrides": {"train.epochs": 4}}, "data.root=pictures", "cluster.workers=2")
    config = TrialPlan.of(search).config({"objective.margin": 0.3, "optimizer.lr": 1e-5}, "7f_00001")
    assert (config.objective.name, config.objective.arguments()) == ("unified", {"margin": 0.3, "scale": 20.0})
    assert (config.optimizer.lr, config.train.epochs, config.cluster.workers) == (1e-5, 4, 2)
    assert config.run_dir == folder / "runs" / "tune" / "s" / "trials" / "s-7f_00001"
    assert config.data.root == folder / "pictures"
    assert (config.tracking.group, config.tracking.job_type) == ("s", "tune")


def test_section_is_replaced_and_then_refined(folder: Path) -> None:
    space = {"objective": {"grid": [{"name": "vlc"}]}, "objective.scale": {"grid": [30]}}
    (config,) = check({"space": space})
    assert config.objective.name == "vlc"
    assert config.objective.arguments()["scale"] == 30


def test_a_section_means_the_same_in_a_file_an_argument_and_a_run(folder: Path) -> None:
    section = {"name": "vlc", "scale": 30}
    space = {"train.seed": {"grid": [0]}}
    in_file = {"space": space, "overrides": {"objective": section, "objective.margin": 0.3}}
    with pytest.raises(UserError, match=r"objective\.margin: vlc has no such argument"):
        check(in_file)  # the key refines the section, wherever it stands
    (config,) = check({"space": space, "overrides": {"objective": section}})
    given = "objective={name: vlc, scale: 30}"
    # An argument that is a whole section replaces what the file says of its keys.
    (same,) = check({"space": space, "overrides": {"objective.margin": 0.3}}, given)
    run = load_run(Path("base.yaml"), [given])
    assert config.objective == same.objective == run.objective
    assert run.objective.arguments() == {"scale": 30.0}


def test_trials_run_elsewhere_but_paths_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = TrialPlan.of(load({"space": {"train.seed": {"grid": [0]}}}, "data.root=pictures"))
    (folder / "session").mkdir()
    monkeypatch.chdir(folder / "session")
    config = plan.config({"train.seed": 0}, "x")
    assert config.data.root == folder / "pictures"
    assert config.run_dir.is_relative_to(folder / "runs" / "tune")


def test_arguments_set_keys_of_the_search(folder: Path) -> None:
    declared = {"space": {"train.seed": {"choice": [0, 1]}}, "algorithm": "random", "trials": 3}
    search = load(declared, "trials=5", "name=other", "scheduler=asha")
    assert (search.trials, search.name, search.scheduler) == (5, "other", "asha")


@pytest.mark.parametrize(
    ("declared", "arguments", "message"),
    [
        ({"space": {"optimizer.lrr": {"grid": [1e-3]}}}, (), "optimizer.lrr: unknown key.*'optimizer.lr'"),
        ({"space": {"optimiser.lr": {"grid": [1e-3]}}}, (), "did you mean 'optimizer"),
        ({"space": {"objective.margn": {"grid": [0.1]}}}, (), "objective.margn.*did you mean 'margin'"),
        ({"space": {"objective.margin": {"grid": [0.1, "wide"]}}}, (), "objective.margin='wide' is not accepted"),
        ({"space": {"objective": {"grid": [{"name": "unifed"}]}}}, (), "did you mean 'unified'"),
        ({"space": {"train.epochs": {"grid": [1, 0]}}}, (), "train.epochs=0 is not accepted"),
        ({"space": {"train.seed": {"grid": [0]}}}, ("train.epoch=3",), "train.epoch: unknown key.*'train.epochs'"),
        ({"space": {"run.name": {"grid": ["a"]}}}, (), "run.name is set by the search"),
        ({"space": {"train.seed": {"gird": [0]}}}, (), "space.train.seed.gird: unknown key.*'grid'"),
        ({"space": {"train.seed": {"choice": [0]}}}, (), "space.train.seed: choice needs algorithm random or optuna"),
        ({"space": {"train.seed": {"grid": [0]}}, "algorithm": "optuna", "trials": 2}, (), "optuna takes choice"),
        ({"space": {"train.seed": {"choice": [0]}}, "algorithm": "random"}, (), "trials: missing"),
        ({"space": {"train.seed": {"grid": [0]}}, "trials": 2}, (), "grid has as many trials as its lists make"),
        ({"space": {"train.seed": {"grid": [0]}}}, ("train.seed=1",), "both searched and overridden"),
        ({"space": {"train.seed": {"grid": [0]}}}, ("trails=2",), "'trails=2': unknown key.*'trials'"),
        ({"space": {"train.seed": {"grid": [0]}}}, ("space=2",), "space is given in the file"),
        ({"space": {"train.seed": {"grid": [0]}}}, ("train.epochs",), "expected key=value"),
        ({"space": {"train.seed": {"grid": [0]}}, "schedular": "asha"}, (), "schedular: unknown key.*'scheduler'"),
        ({"space": {"train.seed": {"grid": [0]}}, "scheduler": "asha", "grace": 9}, (), "grace=9 is longer than"),
        ({"space": {}}, (), "space=.* at least 1"),
        ({}, (), "space: missing"),
        ({"space": {"train.seed": {"grid": [0]}}}, ("objective=vlc",), "objective='vlc': objective is a section"),
        ({"space": {"train.seed": {"grid": [0]}}, "overrides": 3}, (), "overrides=3 is not accepted"),
        ({"space": {"optimizer.lr": {"grid": [float("inf")]}}}, (), "optimizer.lr=inf is not accepted"),
        (
            {"space": {"optimizer.lr": {"uniform": [0.1, float("inf")]}}, "algorithm": "random", "trials": 1},
            (),
            r"space\.optimizer\.lr\.uniform\[1\]=inf is not accepted",
        ),
        ({"space": {"train.seed": {"grid": [0]}}}, ("reduction=.inf",), "reduction=inf is not accepted"),
        ({"space": {"train.seed": {"grid": [0]}}, "base": "bas.yaml"}, (), "no such config file.*'base.yaml'"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_mistakes_are_told_before_anything_starts(declared: dict, arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(declared, *arguments)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("folder")
def test_grid_is_checked_in_all_combinations() -> None:
    space = {"objective": {"grid": [{"name": "unified"}, {"name": "vlc"}]}, "objective.margin": {"grid": [0.1]}}
    with pytest.raises(UserError, match=r"with vlc margin=0\.1: objective\.margin: vlc has no such argument"):
        check({"space": space})


@pytest.mark.usefixtures("folder")
def test_ranges_are_checked_at_their_ends() -> None:
    declared = {"algorithm": "random", "trials": 1, "space": {"optimizer.lr": {"loguniform": [1e-4, 100]}}}
    with pytest.raises(UserError, match=r"optimizer\.lr=100\.0 is not accepted"):
        check(declared)


def test_command_tells_a_mistake_in_one_line(folder: Path) -> None:
    load({"space": {"optimizer.lrr": {"grid": [1e-3]}}})
    command = [sys.executable, "-m", "tune.search", "--config", str(folder / "search.yaml"), "base=base.yaml"]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean 'optimizer.lr'?" in done.stderr


TRIALS = {"margin_scale": 13, "weights": 21, "losses": 4 * 3, "goal": 15 * 3}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "tune").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_searches_never_see_the_test_split(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = TrialPlan.of(load_search(path))
    assert all(config.data.test is None for config in plan.check())
    assert plan.search.metric == "val/rsum"
    assert plan.count == TRIALS[path.stem]
