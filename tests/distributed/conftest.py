"""A configuration that trains on the tiny data in a second."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed.config import Config, validate
from distributed.data.writer import Sample, write_split


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


@pytest.fixture(scope="session")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Precomputed region features, [6, 24] per image, whose captions name what lies in them; with margins."""
    root = tmp_path_factory.mktemp("regions")
    draw = np.random.default_rng(0)
    for split, count in (("train", 66), ("val", 24)):
        samples = []
        for number in range(count):
            features = draw.normal(size=(6, 24)).astype(np.float32)
            buffer = io.BytesIO()
            np.save(buffer, features)
            words = [f"word{position}" for position in np.abs(features).max(0).argsort()[-4:]]
            soft = {"soft": number / count}
            samples.append(Sample(f"item-{number}", "npy", buffer.getvalue(), [" ".join(words)], soft))
        source = {"margin_columns": ["soft"]}
        write_split(root / split, samples, name="regions", split=split, source=source, kind="regions")
    return root
