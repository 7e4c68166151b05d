"""Every configuration that we ship loads, and every launch file asks for what there is."""

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from allpairs.models import build
from distributed.config import load
from tests.test_surface import COMMANDS
from tune.config import load_search
from tune.trial import TrialPlan

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = sorted((ROOT / "recipes").glob("*.sh"))
RUNS = [path for path in CONFIGS if "run" in yaml.safe_load(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_config_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the README's commands run
    if "base" in yaml.safe_load(path.read_text(encoding="utf-8")):
        assert TrialPlan.of(load_search(path)).check()
    else:
        assert load(path).run.name


PAPERS = ROOT / "docs/papers.md"
TABLES = PAPERS.read_text(encoding="utf-8").partition("## On emoji")[0]
ROWS = list(dict.fromkeys(re.findall(r"`([a-z_/0-9]+\.yaml(?: [^`]+)?)`", TABLES)))
SUM = re.compile(r"([\d.]+)/([\d.]+)/([\d.]+), ([\d.]+)/([\d.]+)/([\d.]+), ([\d.]+)")


def test_every_row_of_the_papers_is_a_configuration_as_published() -> None:
    """What all three papers share is in every row; what a row changes has taken effect."""
    for row in ROWS:
        file, *overrides = shlex.split(row)
        config = load(ROOT / "configs/papers" / file, overrides)
        assert (config.train.global_batch, config.optimizer.clip_norm) == (128, 2.0), row
        summed = config.objective.arguments().get("reduction") == "sum"
        assert summed == (config.objective.name not in ("nt_xent", "smooth_ap")), row
        assert (config.data.epoch_unit == "captions") == (config.objective.name != "smooth_ap"), row
    files = {row.split()[0] for row in ROWS}
    assert files == {
        str(path.relative_to(ROOT / "configs/papers")) for path in RUNS if path.is_relative_to(ROOT / "configs/papers")
    }


def test_published_figures_add_up() -> None:
    """Six recalls and the RSUM beside them, each rounded to one decimal by the paper."""
    found = SUM.findall(TABLES)
    assert len(found) == 9 + 6 + 16
    for *recalls, rsum in found:
        assert abs(sum(map(float, recalls)) - float(rsum)) < 0.45, (recalls, rsum)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
HUB = {
    "clip": {"text_config": SMALL, "vision_config": {**SMALL, "image_size": 32, "patch_size": 16}, "projection_dim": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
    "bert": SMALL,
    "vit": {**SMALL, "image_size": 32, "patch_size": 16},
}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_model_is_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hub would give is small here; what needs none takes no memory."""

    def configuration(name: str) -> transformers.PretrainedConfig:
        kind = next(kind for kind in HUB if kind in name)
        return transformers.CONFIG_MAPPING[kind](**HUB[kind])

    def network(name: str, config: transformers.PretrainedConfig, **_: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
        return transformers.AutoModel.from_config(config), {"missing_keys": []}

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", configuration)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", network)
    model = load(path).model
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    networks = "transformers" in json.dumps(dataclasses.asdict(model))
    with torch.device("cpu" if networks else "meta"):
        built = build(model, 100)
    asked = getattr(model, "head", None) or getattr(model, "dim", None)
    assert asked in (None, built.dim)
    assert any(parameter.requires_grad for parameter in built.parameters())


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
