"""A real search through Ray: killed while its second trial trains, resumed, reported."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from distributed.data.sources import build_folder

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "gray")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pictures to train on and 16 to validate with: a coloured disc or square, left or right."""
    source = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 64), ("val", 16)):
        (source / split).mkdir()
        for number in range(count):
            colour, side, shape = COLOURS[number % 8], number // 8 % 2, ("disc", "square")[number // 16 % 2]
            image = Image.new("RGB", (32, 32), "black")
            box = (18, 8, 30, 20) if side else (2, 8, 14, 20)
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
            image.save(source / split / f"{number:03}.png")
            caption = f"a {colour} {shape} on the {('left', 'right')[side]}"
            (source / split / f"{number:03}.txt").write_text(f"{caption}\n{colour} {shape}\n")
    out = tmp_path_factory.mktemp("data") / "pictures"
    build_folder(source, out=out)
    return out


@pytest.fixture
def search_file(tmp_path: Path, pictures: Path) -> Path:
    base = {
        "run": {"name": "base"},
        "data": {"root": str(pictures), "test": None, "image_size": 32},
        "model": {"dim": 16, "image": {"kind": "cnn", "width": 8, "blocks": 2}, "text": {"kind": "gru"}},
        "train": {"epochs": 3, "global_batch": 32},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    search = {
        "name": "margins",
        "base": "base.yaml",
        "dir": "searches",
        "space": {"objective.margin": {"grid": [0.1, 0.3]}, "objective.scale": {"grid": [20]}},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search))
    return tmp_path / "search.yaml"


def start(search_file: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "tune.search", "--config", search_file.name, *arguments],
        cwd=search_file.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when_second_trial_is_measured(process: subprocess.Popen) -> list[str]:
    """Return the ids of the two trials; the process dies as by a power cut, without a chance to tidy up."""
    ids: list[str] = []
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if line.rstrip().endswith("started"):
            ids.append(line.split()[0])
        if len(ids) == 2 and line.startswith(ids[1]) and "epoch 1" in line:
            process.kill()
            process.wait()
            return ids
    raise AssertionError("the search ended by itself:\n" + "".join(seen))


def test_killed_search_goes_on_where_it_was(search_file: Path) -> None:
    first, second = kill_when_second_trial_is_measured(start(search_file))
    folder = search_file.parent / "searches" / "margins"
    finished = folder / "trials" / f"margins-{first}" / "metrics.jsonl"
    before = finished.read_bytes()

    resumed = start(search_file, "--resume")
    output, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, output

    with (folder / "results.csv").open(newline="") as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {first, second}
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert {row["objective.margin"] for row in rows.values()} == {"0.1", "0.3"}
    assert {row["epochs"] for row in rows.values()} == {"3.0"}
    assert finished.read_bytes() == before  # the finished trial was kept, not trained again
    assert (folder / "search.png").stat().st_size > 0
    assert (folder / "search.svg").stat().st_size > 0
    config = yaml.safe_load((folder / "trials" / f"margins-{second}" / "config.yaml").read_text())
    assert config["tracking"]["group"] == "margins"
    assert config["objective"]["margin"] == float(rows[second]["objective.margin"])
