"""A data set small enough to train on in a second, made by hand, and a configuration for it."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distributed.config import Config, validate
from distributed.data.writer import Sample, write_split

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white"]
SIZES = {"tiny": 4, "small": 8, "big": 12, "huge": 16}


def draw(colour: str, size: str, corner: int) -> bytes:
    """A square of a colour and size in one of four corners."""
    image = Image.new("RGB", (24, 24), "grey")
    image.paste(colour, (corner % 2 * 8, corner // 2 * 8, corner % 2 * 8 + SIZES[size], corner // 2 * 8 + SIZES[size]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def samples(held_out: bool) -> list[Sample]:
    """128 squares, every fourth of them held out."""
    places = ("upper left", "upper right", "lower left", "lower right")
    kinds = [(colour, size, corner) for colour in COLOURS for size in SIZES for corner in range(4)]
    return [
        Sample(
            f"{colour}-{size}-{corner}",
            "png",
            draw(colour, size, corner),
            [f"a {size} {colour} square {places[corner]}", f"{colour}, {size}, {places[corner]}"],
        )
        for number, (colour, size, corner) in enumerate(kinds)
        if (number % 5 % 4 == 3) == held_out
    ]


@pytest.fixture(scope="session")
def tiny_samples():
    """The function that makes the tiny data's samples."""
    return samples


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """103 training images, 25 to validate and test on, two captions each."""
    root = tmp_path_factory.mktemp("tiny")
    for split in ("train", "val", "test"):
        write_split(root / split, samples(split != "train"), name="tiny", split=split, source={}, shard_samples=40)
    return root


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
