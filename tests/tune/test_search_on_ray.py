"""A real search through Ray: stopped in its first trial, killed in its second, resumed, reported."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image, ImageDraw

from distributed.data.sources import build_folder
from tests.distributed.wandb_files import assert_whole

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
    """A trial that learns and one that does not, which ASHA stops at its fourth epoch."""
    base = {
        "run": {"name": "base"},
        "data": {"root": str(pictures), "test": None, "image_size": 32},
        "model": {"dim": 16, "image": {"kind": "cnn", "width": 8, "blocks": 2}, "text": {"kind": "gru"}},
        "optimizer": {"warmup_epochs": 0, "schedule": "constant"},
        "train": {"epochs": 13, "global_batch": 32, "log_every": 1},
        "tracking": {"wandb": "offline"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    search = {
        "name": "rates",
        "base": "base.yaml",
        "dir": "searches",
        "space": {"optimizer.lr": {"grid": [2e-3, 1e-9]}},
        "scheduler": "asha",
        "grace": 4,
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
        start_new_session=True,
    )


def read_until(process: subprocess.Popen, *words: str) -> str:
    """Read what the search prints up to a line with all of `words`."""
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if all(word in line for word in words):
            return "".join(seen)
    raise AssertionError("the search ended by itself:\n" + "".join(seen))


def steps(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "train/loss" in row]


def checkpoint_step(run: Path) -> int:
    return json.loads((run / "checkpoints/last/position.json").read_text())["step"]


def test_a_search_that_is_stopped_then_killed_goes_on_where_it_was(search_file: Path) -> None:
    """SIGTERM in the first trial, a power cut in the second, which ASHA then stops by what it learnt before both."""
    folder = search_file.parent / "searches" / "rates"
    process = start(search_file, "--resume", "auto")
    read_until(process, "lr=0.002", "epoch 6")
    others = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    assert "SIGTERM: running trials finish their step and save a checkpoint" in output
    assert "interrupted with 2 trials to go; --resume auto continues them" in output
    assert psutil.wait_procs(others, timeout=20)[1] == []
    (first,) = (folder / "trials").iterdir()
    assert steps(first) == list(range(1, checkpoint_step(first) + 1))
    assert len(steps(first)) >= 12
    before = (first / "metrics.jsonl").read_bytes()

    process = start(search_file, "--resume", "auto")
    read_until(process, "lr=1e-09", "epoch 1 ")
    process.kill()
    process.wait()
    assert steps(first) == list(range(1, 27))
    assert (first / "metrics.jsonl").read_bytes().startswith(before)
    finished = (first / "metrics.jsonl").read_bytes()

    output, _ = (process := start(search_file, "--resume", "auto")).communicate(timeout=400)
    assert process.returncode == 0, output
    assert re.search(r"lags behind at epoch ([4-9]|1[01]): it saves and stops early", output), output
    with (folder / "results.csv").open(newline="") as file:
        rows = {row["optimizer.lr"]: row for row in csv.DictReader(file)}
    assert {lr: row["status"] for lr, row in rows.items()} == {"0.002": "finished", "1e-09": "stopped early"}
    assert rows["0.002"]["epochs"] == "13.0"
    assert (first / "metrics.jsonl").read_bytes() == finished  # the finished trial was kept, not trained again
    second = Path(rows["1e-09"]["run"])
    assert steps(second) == list(range(1, checkpoint_step(second) + 1))
    assert 8 <= checkpoint_step(second) < 26
    assert (folder / "search.png").stat().st_size > 0
    assert (folder / "search.svg").stat().st_size > 0
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert config["tracking"]["group"] == "rates"
    assert config["optimizer"]["lr"] == 1e-9
    # W&B holds every row of a trial that was stopped and resumed, and of one that died, was resumed and stopped early.
    assert [code for code, _ in assert_whole(first)] == [1, 0]
    assert assert_whole(second)[-1][0] == 0
