"""``python -m allpairs.analysis``: what it prints, writes and refuses, by its exit code."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from allpairs.analysis.cocos import DIRECTIONS
from allpairs.objectives import names


@pytest.fixture
def command(in_process, monkeypatch):
    """Run the command inside this process, up to its exit."""
    monkeypatch.setenv("COLUMNS", "200")
    return in_process(importlib.import_module("allpairs.analysis.__main__").make_app())


@pytest.fixture
def files(make_embeddings, tmp_path):
    """Two runs' embeddings."""
    paths = []
    for name, objective, arguments in (("one", "unified", {"scale": 50.0}), ("two", "triplet_hn", {})):
        embeddings = make_embeddings(
            noise=2.0, run=name, checkpoint="best", step=9, split="train", objective=objective, arguments=arguments
        )
        embeddings.write(tmp_path / f"{name}")
        paths.append(tmp_path / f"{name}")
    return paths


def assert_drawn(path):
    """An image that shows something: of a figure's size, with lines or areas in several colours."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    coloured = counts[np.ptp(colours.astype(int), axis=1) > 40].sum()
    assert len(colours) > 20
    assert coloured > 0.001 * len(pixels)


def test_counts_of_the_objective_each_run_was_trained_with(command, files, tmp_path):
    code, out, _ = command("counts", "--embeddings", *files, "--out", tmp_path / "a", "--batch-size", 16)
    assert code == 0
    assert "unified(scale=50.0)" in out
    assert "C^q" in out
    assert "W⁻" in out
    result = json.loads((tmp_path / "a" / "counts.json").read_text())
    assert [(row["run"], row["objective"], row["batches"], row["left_out"]) for row in result["rows"]] == [
        ("one", "unified(scale=50.0)", 3, 2),
        ("two", "triplet_hn", 3, 2),
    ]
    for side in DIRECTIONS:
        assert result["rows"][1]["counts"][side]["c_q"] == {"mean": 1.0, "std": 0.0}
        assert 0 < result["rows"][0]["counts"][side]["w_plus"]["mean"] < 1
    assert_drawn(tmp_path / "a" / "counts.png")


def test_counts_of_a_named_objective_and_of_all(command, files, tmp_path):
    code, out, _ = command(
        "counts", "triplet=nca", "pair=sig", "margin=null", "--embeddings", files[0], "--objective", "goal",
        "--out", tmp_path / "named", "--batch-size", 16,
    )  # fmt: skip
    assert code == 0
    assert "goal(nca, sig, margin=None)" in out
    code, _, _ = command(
        "counts", "--embeddings", files[0], "--objective", "all", "--out", tmp_path / "all", "--batch-size", 16
    )
    assert code == 0
    rows = json.loads((tmp_path / "all" / "counts.json").read_text())["rows"]
    assert {row["objective"].partition("(")[0] for row in rows} == set(names())
    assert len(rows) == len(names()) - 1 + 15


def test_table_joins_counts_into_markdown(command, files, tmp_path):
    for path in files:
        command("counts", "--embeddings", path, "--out", tmp_path / path.stem, "--batch-size", 16)
    joined = [tmp_path / path.stem / "counts.json" for path in files]
    code, out, _ = command("table", *joined)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "| run | split | objective | direction | C^q | C^B | C^0 | C | W⁻ | W⁺ | C rel |"
    assert [line.split(" | ")[0:4] for line in lines[2:6]] == [
        ["| one", "train", "unified(scale=50.0)", "i2t"],
        ["| one", "train", "unified(scale=50.0)", "t2i"],
        ["| two", "train", "triplet_hn", "i2t"],
        ["| two", "train", "triplet_hn", "t2i"],
    ]
    assert lines[4].split(" | ")[4] == "1.00 ± 0.00"
    assert {line.count("|") for line in lines[:6]} == {12}
    assert "batches of 16" in lines[7]
    assert command("table", *joined, "--out", tmp_path / "t.md")[0] == 0
    assert (tmp_path / "t.md").read_text() == out


def test_gradients(command, files, tmp_path):
    code, out, _ = command(
        "gradients", "--embeddings", *files, "--out", tmp_path / "g", "--batch-size", 16, "--dim", 32
    )
    assert code == 0
    assert "collapsed" in out
    result = json.loads((tmp_path / "g" / "gradients.json").read_text())
    assert set(result["synthetic"]) == {"collapsed", "twins"}
    first, *_, last = result["synthetic"]["collapsed"]
    assert first["norms"]["triplet_hn"]["anchor"] > 100 * last["norms"]["triplet_hn"]["anchor"] > 0
    assert [point["source"] for point in result["embeddings"]] == ["one best train", "two best train"]
    for name in ("collapsed", "twins", "embeddings"):
        assert_drawn(tmp_path / "g" / f"gradients_{name}.png")


def test_diagrams(command, tmp_path):
    code, out, _ = command("diagrams", "--out", tmp_path / "d", "--points", 20)
    assert code == 0
    assert "smooth_ap" in out
    result = json.loads((tmp_path / "d" / "diagrams.json").read_text())
    assert len(result["weights"]) == len(names()) - 1 + 15
    weights = result["weights"]["goal(con, lin)"]
    at = [result["axis"].index(s) for s in result["axis"] if s < 0][2]
    assert weights["pull"][-1][at] == pytest.approx(1 - result["axis"][at], rel=1e-5)
    assert weights["push"][-1][at] == pytest.approx(1)
    for name in ("triplet_weights", "pair_weights", "goal", "objectives"):
        assert_drawn(tmp_path / "d" / f"{name}.png")


def test_nothing_that_is_there_is_overwritten(command, files, tmp_path):
    counts = ("counts", "--embeddings", files[0], "--batch-size", 16)
    assert command(*counts, "--out", tmp_path / "n")[0] == 0
    table = tmp_path / "t.md"
    table.write_text("mine")
    gradients, diagrams = tmp_path / "g" / "gradients_twins.png", tmp_path / "d" / "goal.png"
    for file in (gradients, diagrams):
        file.parent.mkdir()
        file.write_text("mine")
    for arguments, there in (
        ((*counts, "--out", tmp_path / "n"), tmp_path / "n" / "counts.json"),
        (("table", tmp_path / "n" / "counts.json", "--out", table), table),
        (("gradients", "--out", tmp_path / "g"), gradients),
        (("diagrams", "--out", tmp_path / "d"), diagrams),
    ):
        before = there.read_bytes()
        code, out, err = command(*arguments)
        assert (code, out) == (2, "")
        assert err == f"error: --out {there} exists already; give another, or --overwrite to replace it\n"
        assert there.read_bytes() == before
    assert command("table", tmp_path / "n" / "counts.json", "--out", table, "--overwrite")[0] == 0
    assert table.read_text().startswith("| run |")
    assert command(*counts, "--out", tmp_path / "n", "--overwrite")[0] == 0


MISTAKES = {
    "no 'none' in": ("counts", "--embeddings", "none", "--out", "x"),
    "accepted: 2 to 50": ("counts", "--embeddings", "ONE", "--out", "x", "--batch-size", "51"),
    "did you mean 'unified'": ("counts", "--embeddings", "ONE", "--out", "x", "--objective", "unifed"),
    "did you mean 'margin'": ("counts", "margn=0.1", "--embeddings", "ONE", "--out", "x", "--objective", "unified"),
    "margin='wide' is impossible": ("counts", "margin=wide", "--embeddings", "ONE", "--out", "x", "--objective", "rsp"),
    "'wide' is no argument": ("counts", "wide", "--embeddings", "ONE", "--out", "x", "--objective", "unified"),
    "need --objective NAME": ("counts", "margin=0.1", "--embeddings", "ONE", "--out", "x"),
    "--epsilon 1.5": ("counts", "--embeddings", "ONE", "--out", "x", "--epsilon", "1.5"),
    "not the counts.json": ("table", "ONE"),
    "nothing to join": ("table",),
    "--points 5": ("diagrams", "--out", "x", "--points", "5"),
    "--dim 0": ("gradients", "--out", "x", "--dim", "0"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(message, command, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*(files[0] if part == "ONE" else part for part in MISTAKES[message]))
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_embeddings_that_name_no_objective_need_one(command, make_embeddings, tmp_path):
    make_embeddings().write(tmp_path / "plain")
    code, _, err = command("counts", "--embeddings", tmp_path / "plain", "--out", tmp_path / "x")
    assert code == 2
    assert "--objective NAME, or all" in err
    arguments = ("--objective", "vlc", "--batch-size", 10, "--out", tmp_path / "x")
    assert command("counts", "--embeddings", tmp_path / "plain", *arguments)[0] == 0
    assert json.loads((tmp_path / "x" / "counts.json").read_text())["rows"][0]["run"] == "plain"


def test_the_library_alone_imports_no_drawing_and_no_command_line():
    script = (
        "import sys, allpairs.analysis; print({'matplotlib', 'cyclopts', 'rich', 'safetensors'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_help_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "allpairs.analysis", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("counts", "table", "gradients", "diagrams"):
        assert word in result.stdout


def test_without_its_packages_one_line_says_how_to_get_them(tmp_path):
    script = (
        "import runpy, sys\n"
        "sys.modules['cyclopts'] = None\n"  # as if it were not installed
        f"sys.argv = ['analysis', 'diagrams', '--out', {str(tmp_path)!r}]\n"
        "runpy.run_module('allpairs.analysis', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == ("error: cyclopts is not installed; the commands need: pip install 'allpairs[analysis]'\n")
