"""docs/objectives.md adds an objective: what it says is done, and the new one goes through the tests of all others."""

import importlib.util
import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from allpairs.objectives import catalogue, make, names
from tests.allpairs.engine import worlds
from tests.allpairs.objectives import cases, reference, test_against_reference

PAGE = Path(__file__).parents[3] / "docs" / "objectives.md"
CASES = [case for case in worlds.CASES if case[0] == "triplet-margin=0.3" and case[2] == "float64"]


def follow(folder: Path) -> None:
    """Do what the page says: a file, a line of the catalogue, a formula and a case."""
    section = PAGE.read_text(encoding="utf-8").partition("## One more")[2]
    file, line, formula, case = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    path = folder / "logistic.py"
    path.write_text(file, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("logistic", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["logistic"] = module
    spec.loader.exec_module(module)
    catalogue._OBJECTIVES |= eval(f"{{{line}}}", vars(module))
    exec(formula, vars(reference))
    cases.TABLE |= eval(f"{{{case}}}", vars(cases) | vars(reference))
    worlds.OBJECTIVES["logistic"] = ("logistic", {"scale": 5.0}, False)


@pytest.fixture
def followed(tmp_path, monkeypatch):
    for holder, name in ((catalogue, "_OBJECTIVES"), (cases, "TABLE"), (worlds, "OBJECTIVES")):
        monkeypatch.setattr(holder, name, dict(getattr(holder, name)))
    monkeypatch.setattr(cases, "CASES", [*cases.CASES, ("logistic", {"scale": 5.0})])
    follow(tmp_path)
    yield
    del sys.modules["logistic"], reference.logistic


def run_rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    follow(Path(directory) / f"page{rank}")
    found = worlds.steps(2, rank, dist.group.WORLD, [("logistic", *case[1:]) for case in CASES])
    torch.save(found, Path(directory) / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_the_page_adds_an_objective_that_passes_the_tests_of_all(followed, tmp_path):
    assert "logistic" in names()
    assert names() == sorted(cases.TABLE)
    for layout in test_against_reference.PAIRS:
        for reduction in ("mean", "sum"):
            for call in test_against_reference.BACKENDS.values():
                test_against_reference.test_value_and_gradient("logistic", {"scale": 5.0}, layout, reduction, call)
            test_against_reference.test_pair_weights_are_the_derivative_by_the_scores(
                "logistic", {"scale": 5.0}, layout, reduction
            )
    assert make("logistic", scale=1000.0)(torch.eye(4), -torch.eye(4)).isfinite()

    for rank in range(2):
        (tmp_path / f"page{rank}").mkdir()
    torch.multiprocessing.start_processes(run_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    alone = worlds.steps(1, 0, None, [("logistic", *case[1:]) for case in CASES])
    assert len(alone) >= 12
    for rank in range(2):
        for case, values in torch.load(tmp_path / f"rank{rank}.pt", weights_only=False).items():
            for key, expected in alone[case].items():
                assert (values[key] - expected).norm() <= 1e-12 * expected.norm(), (case, key)
