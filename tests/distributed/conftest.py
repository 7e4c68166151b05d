"""A configuration that trains on the tiny data in a second."""

from pathlib import Path
from typing import Any

import pytest

from distributed.config import Config, validate


@pytest.fixture
def tiny_config(tiny: Path, tmp_path: Path):
    """Make a configuration over the tiny data; sections given override its own."""

    def make(name: str = "run", **sections: dict[str, Any]) -> Config:
        tree: dict[str, Any] = {
            "run": {"name": name, "dir": str(tmp_path / "runs")},
            "data": {"root": str(tiny), "image_size": 24},
            "model": {
                "dim": 16,
                "image": {"kind": "cnn", "width": 8, "blocks": 2},
                "text": {"kind": "gru", "embedding": 16, "word_dropout": 0.1},
            },
            "objective": {"name": "vlc", "learn_scale": True},
            "optimizer": {"lr": 1e-2},
            "train": {"epochs": 3, "global_batch": 22, "log_every": 2},
            "tracking": {"wandb": "disabled"},
        }
        for section, values in sections.items():
            tree[section] = values if section == "objective" else tree.get(section, {}) | values
        return validate(tree)

    return make
