"""Every configuration that we ship loads, and every launch file asks for what there is."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from distributed.config import load
from tests.test_surface import COMMANDS
from tune.config import load_search
from tune.trial import TrialPlan

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = sorted((ROOT / "recipes").glob("*.sh"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_config_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the README's commands run
    if "base" in yaml.safe_load(path.read_text(encoding="utf-8")):
        assert TrialPlan.of(load_search(path)).check()
    else:
        assert load(path).run.name


def launches(recipe: Path) -> list[list[str]]:
    """The words of each `python -m` line of a launch file; a function that wraps one is read at its calls."""
    text = recipe.read_text(encoding="utf-8")
    wrapped = re.search(r"^train\(\) { (.*) \"\$@\"; }$", text, re.MULTILINE)
    if wrapped:
        text = re.sub(r"^train ", f"{wrapped[1]} ", text, flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines()]
    return [[word for word in shlex.split(line) if word != "$@"] for line in lines if line.startswith("python -m ")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_launch_file_asks_for_what_there_is(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    subprocess.run(["bash", "-n", recipe], check=True)
    found = launches(recipe)
    assert found
    for _, _, module, *words in found:
        assert module in COMMANDS
        if "--config" in words:
            config, *arguments = words[words.index("--config") + 1 :]
            if module == "tune.search":
                assert TrialPlan.of(load_search(Path(config), arguments)).check()
            else:
                assert load(Path(config), arguments).run.name
