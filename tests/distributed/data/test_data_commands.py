import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distributed.data import open_dataset

ROOT = Path(__file__).parents[3]


@pytest.fixture
def pairs(tmp_path, png):
    for i in range(20):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / f"{i}.png").write_bytes(png((i, 0, 0)))
        (tmp_path / "pairs" / f"{i}.txt").write_text(f"picture number {i}\nanother caption of {i}\n")
    return tmp_path / "pairs"


def test_build_validate_describe(command, pairs, tmp_path):
    out = tmp_path / "out"
    code, text, _ = command("build", "folder", pairs, "--out", out, "--shard-samples", 5, "--val", 0.2, "--seed", 3)
    assert code == 0
    assert "train" in text
    assert sorted(folder.name for folder in out.iterdir()) == ["test", "train", "val"]
    assert len(open_dataset(out / "train").manifest.shards) == 3

    code, text, _ = command("validate", out, "--world", 2, "--json", tmp_path / "v.json")
    assert code == 0
    assert "ok: 14 samples in 3 shards" in text
    assert [report["ok"] for report in json.loads((tmp_path / "v.json").read_text())] == [True] * 3

    code, text, _ = command("describe", out / "train", "--json", tmp_path / "d.json")
    assert code == 0
    (description,) = json.loads((tmp_path / "d.json").read_text())
    assert description["samples"] == 14
    assert description["captions"] == 28
    assert description["words_per_caption"] == {"min": 3, "median": 3, "mean": 3.5, "95%": 4, "max": 4}
    assert description["sizes"] == {"8×8 PNG": 14}
    assert description["vocabulary"] == 5 + 14
    assert "picture number" in text


def test_every_source_has_its_command(command, tmp_path, karpathy_json, tar_shard, png):
    file, images = karpathy_json(tmp_path / "k")
    assert command("build", "karpathy", file, "--images", images, "--out", tmp_path / "k" / "out")[0] == 0
    assert open_dataset(tmp_path / "k" / "out" / "train").manifest.name == "tiny"
    (tmp_path / "r").mkdir()
    np.save(tmp_path / "r" / "train_ims.npy", np.zeros((2, 3, 4), np.float32))
    (tmp_path / "r" / "train_caps.txt").write_text("a b\n" * 10)
    assert command("build", "regions", tmp_path / "r", "--out", tmp_path / "r" / "out")[0] == 0
    assert open_dataset(tmp_path / "r" / "out" / "train").kind == "regions"
    assert command("validate", tmp_path / "r" / "out")[0] == 0
    assert command("describe", tmp_path / "r" / "out")[0] == 0
    tar_shard(tmp_path / "i" / "0.tar", [("a.jpg", png()), ("a.txt", b"x")])
    for split in ("train", "val"):
        assert command("build", "img2dataset", tmp_path / "i", "--out", tmp_path / "i2", "--split", split)[0] == 0
        assert len(open_dataset(tmp_path / "i2" / split)) == 1
    code, _, errors = command("build", "img2dataset", tmp_path / "i", "--out", tmp_path / "i2", "--split", "val")
    assert code == 2
    assert "val exists already; give another --out, or --overwrite" in errors


def test_problems_are_exit_code_1(command, tmp_path, tar_shard, png):
    tar_shard(tmp_path / "raw" / "0.tar", [("a.png", png()), ("b.png", b"?"), ("b.txt", b"x")])
    code, text, _ = command("validate", tmp_path / "raw")
    assert code == 1
    assert "missing text: first in 0.tar: a" in text
    assert "undecodable image: first in 0.tar: b" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "nowhere"], "nowhere: no such folder"),
        (["describe", "."], "neither manifest.json nor shards"),
        (["build", "folder", "nowhere", "--out", "o"], "nowhere: no such folder"),
        (["build", "img2dataset", "pipe:cat x.tar", "--out", "o", "--split", "train"], "addresses are refused"),
        (["build", "img2dataset", ".", "--out", "o", "--split", "../x"], "a plain name"),
        (["build", "scenes", "--out", "o", "--shard-samples", "0"], "--shard-samples 0: at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, errors = command(*arguments)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_flag_is_exit_code_2_without_traceback(tmp_path):
    arguments = ["-m", "distributed.data", "validate", str(tmp_path), "--wrld", "2"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--wrld" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
