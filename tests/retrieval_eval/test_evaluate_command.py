"""``python -m retrieval_eval.evaluate``: what it prints, writes and refuses, by its exit code."""

import json
import subprocess
import sys

import numpy as np
import pytest

from retrieval_eval import evaluate
from retrieval_eval.command import run
from retrieval_eval.embeddings import EmbeddingSet


@pytest.fixture
def command(capsys):
    """Run the command inside this process, up to its exit."""
    import importlib

    app = importlib.import_module("retrieval_eval.evaluate").app

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            run(app, [str(argument) for argument in arguments])
        output = capsys.readouterr()
        return exit_.value.code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, and two galleries as plain arrays beside it."""
    base = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(4)
    images, ids = rng.normal(size=(20, 8)), np.repeat(np.arange(20), 2)
    captions = images[ids] + rng.normal(size=(40, 8))
    keys, texts = [f"image {i}" for i in range(20)], [f"caption {i}" for i in range(40)]
    EmbeddingSet(images, captions, np.arange(20), ids, keys, texts).write(base / "first" / "embeddings" / "test")
    (base / "first" / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "val/rsum": 100.0}\n{"step": 2, "ep')
    (base / "first" / "config.yaml").write_text("run:\n  name: first\n")
    np.save(base / "queries.npy", images)
    np.save(base / "gallery.npy", captions)
    (base / "positives.json").write_text(json.dumps([[2 * i, 2 * i + 1] for i in range(20)]))
    return base


def test_evaluates_a_run(command, folder):
    code, out, err = command("--run", folder / "first")
    assert (code, err) == (0, "")
    embeddings = EmbeddingSet.read(folder / "first" / "embeddings" / "test")
    report = evaluate(embeddings.images, embeddings.captions, embeddings.image_ids, embeddings.caption_ids)
    assert f"RSUM {report.metrics['rsum']:.1f}" in out
    assert "agrees with every counted hit and miss" in out
    page = (folder / "first" / "report.html").read_text()
    assert f"{report.metrics['rsum']:.1f}" in page
    assert "name: first" in page


def test_evaluates_arrays(command, folder, tmp_path):
    arrays = (
        "--queries",
        folder / "queries.npy",
        "--gallery",
        folder / "gallery.npy",
        "--positives",
        folder / "positives.json",
    )
    code, out, err = command(*arrays, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    ids = np.arange(20), np.repeat(np.arange(20), 2)
    expected = evaluate(np.load(folder / "queries.npy"), np.load(folder / "gallery.npy"), *ids).metrics
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == expected
    assert f"{expected['i2t/r1']:.1f}" in out
    assert (tmp_path / "out" / "report.html").exists()
    code, out, _ = command(*arrays, "--one-way")
    assert code == 0
    assert "RSUM" not in out


def test_mistakes_end_with_code_2_and_one_line(command, folder, tmp_path):
    queries, gallery, positives = (folder / name for name in ("queries.npy", "gallery.npy", "positives.json"))
    (tmp_path / "bad.json").write_text("[[0, 1],\n [2,,]]")
    (tmp_path / "flat.json").write_text("[0, 1]")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    broken = np.load(queries)
    broken[7, 0] = np.nan
    np.save(tmp_path / "nan.npy", broken)

    def arrays(**changed):
        chosen = {"queries": queries, "gallery": gallery, "positives": positives} | changed
        return tuple(part for name, path in chosen.items() for part in (f"--{name}", path))

    run_folder = folder / "first"
    cases = [
        ((), "nothing to evaluate: --queries, --gallery, --positives missing"),
        (("--queries", queries, "--gallery", gallery), "--positives missing"),
        (("--run", folder / "fisrt"), "did you mean 'first'?"),
        (("--run", run_folder, "--split", "tset"), "did you mean 'test'?"),
        (("--run", run_folder, "--protocol", "costum"), "unknown protocol 'costum'; did you mean 'custom'?"),
        (("--run", run_folder, "--protocol", "coco-5k"), "accepted: custom"),
        (("--run", run_folder, "--queries", queries), "exclude each other"),
        (("--run", run_folder, "--one-way"), "--one-way is for --queries/--gallery"),
        (arrays(queries=folder / "querys.npy"), "did you mean 'queries.npy'?"),
        (arrays(queries=tmp_path / "objects.npy"), "not a .npy array of numbers"),
        (arrays(queries=tmp_path / "nan.npy"), "infinite values in row 7"),
        (arrays(positives=tmp_path / "bad.json"), "bad.json, line 2, column 5"),
        (arrays(positives=tmp_path / "flat.json"), "one list of gallery indices"),
    ]
    for arguments, said in cases:
        code, _, err = command(*arguments)
        assert code == 2, arguments
        assert said in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert command("--rnu", folder)[0] == 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (("metrics.jsonl", '{"step": 1\n{"step": 2}\n'), "metrics.jsonl, line 1: not a JSON object"),
        (("metrics.jsonl", '[1]\n{"step": 2}\n'), "metrics.jsonl, line 1: not a JSON object"),
        (("config.yaml", "a: [1"), "config.yaml is not a YAML mapping"),
        (("config.yaml", "- 1"), "config.yaml is not a YAML mapping"),
    ],
)
def test_damaged_files_of_a_run_are_named(command, folder, tmp_path, damage, said):
    EmbeddingSet.read(folder / "first" / "embeddings" / "test").write(tmp_path / "run" / "embeddings" / "test")
    file, content = damage
    (tmp_path / "run" / file).write_text(content)
    code, _, err = command("--run", tmp_path / "run")
    assert code == 2
    assert said in err


def test_as_a_module(folder):
    arguments = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        "retrieval_eval.evaluate",
        "--run",
        folder / "none",
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "does not exist" in done.stderr
