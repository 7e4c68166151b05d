"""``python -m retrieval_eval.compare``: its table, files, exit codes and refusals."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from allpairs.command import run
from allpairs.embeddings import EmbeddingSet
from retrieval_eval import evaluate
from retrieval_eval.compare import app


@pytest.fixture
def command(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            run(app, [str(argument) for argument in arguments])
        output = capsys.readouterr()
        return exit_.value.code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(4)
    images, ids = rng.normal(size=(40, 8)), np.repeat(np.arange(40), 3)
    keys, texts = [f"image {i}" for i in range(40)], [f"caption {i}" for i in range(120)]
    for name, noise in (("worse", 2.5), ("better", 0.8)):
        captions = images[ids] + noise * rng.normal(size=(120, 8))
        kept = EmbeddingSet(images, captions, np.arange(40), ids, keys, texts, data_hash="one")
        kept.write(base / name / "embeddings" / "test")
    replace(kept, texts=["another", *texts[1:]]).write(base / "elsewhere" / "embeddings" / "test")
    replace(kept, data_hash="two").write(base / "rebuilt" / "embeddings" / "test")
    replace(kept, protocol="flickr30k-1k").write(base / "flickr" / "embeddings" / "test")
    return base


def metrics(folder):
    given = EmbeddingSet.read(folder / "embeddings" / "test")
    return evaluate(given.images, given.captions, given.image_ids, given.caption_ids).metrics


def test_a_better_run(command, folder, tmp_path):
    code, out, err = command(folder / "worse", folder / "better", "--split", "test", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    first, second = metrics(folder / "worse"), metrics(folder / "better")
    assert set(found["metrics"]) == set(first)
    for name, change in found["metrics"].items():
        assert (change["first"], change["second"]) == (first[name], second[name])
        assert change["difference"] == second[name] - first[name]
    assert found["metrics"]["rsum"]["low"] > 0
    assert found["metrics"]["rsum"]["p"] < 0.001
    assert "\nmAP@5: sum of the precisions at the hits in the top 5, over the hits found there (COCOS)\n" in out
    assert found["manifest"]["gallery"] == {"i2t": 120, "t2i": 40}
    assert sum(found["queries"]["t2i"].values()) == 120
    assert f"{second['rsum'] - first['rsum']:+.1f}" in out
    assert f"t2i: {found['queries']['t2i']['wins']} queries better" in out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "image 7" in page
    assert str(tmp_path / "out" / "comparison.json") in out


def test_a_run_against_itself(command, folder):
    code, out, _ = command(folder / "better", folder / "better")
    assert code == 0
    assert out.count("1.0000") == len(metrics(folder / "better"))
    assert "+0.0 to +0.0" in out


def test_a_subset(command, folder, tmp_path):
    (tmp_path / "some.json").write_text("[1, 2, 3, 4, 5]")
    code, _, err = command(
        folder / "worse", folder / "better", "--subset", tmp_path / "some.json", "--out", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["clusters"] == 5
    assert sum(found["queries"]["i2t"].values()) == 5
    assert (tmp_path / "out" / "comparison.html").exists()


def test_a_comparison_that_is_there_stays(command, folder, tmp_path):
    assert command(folder / "worse", folder / "better", "--out", tmp_path)[0] == 0
    before = (tmp_path / "comparison.json").read_bytes()
    code, _, err = command(folder / "better", folder / "worse", "--out", tmp_path)
    assert code == 2
    assert err == (
        f"error: --out {tmp_path / 'comparison.html'} exists already; give another, or --overwrite to replace it\n"
    )
    assert (tmp_path / "comparison.json").read_bytes() == before
    assert command(folder / "better", folder / "worse", "--out", tmp_path, "--overwrite")[0] == 0
    assert (tmp_path / "comparison.json").read_bytes() != before
    assert "comparisons are a folder" in command(folder / "worse", folder / "better", "--out", tmp_path / "c.html")[2]


def test_another_data_hash_is_said(command, folder):
    code, out, _ = command(folder / "better", folder / "rebuilt")
    assert code == 0
    assert "data hashes differ" in out


def test_mistakes_end_with_code_2_and_one_line(command, folder):
    cases = [
        ((folder / "better", folder / "elsewhere"), "the captions differ first in row 0 ('caption 0' and 'another')"),
        ((folder / "better", folder / "bettre"), "did you mean 'better'?"),
        ((folder / "better", folder / "worse", "--split", "tset"), "did you mean 'test'?"),
        ((folder / "better", folder / "flickr"), "for the protocols custom and flickr30k-1k; accepted: one --protocol"),
        ((folder / "better", folder / "worse", "--protocol", "msrvtt"), "unknown protocol 'msrvtt'"),
        ((folder / "better", folder / "worse", "--protocol", "coco-5k"), "not the gallery of coco-5k"),
    ]
    for arguments, said in cases:
        code, _, err = command(*arguments)
        assert code == 2, arguments
        assert said in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert command(folder / "better")[0] == 2


def test_as_a_module(folder):
    arguments = [sys.executable, "-W", "error::RuntimeWarning", "-m", "retrieval_eval.compare"]
    done = subprocess.run([*arguments, folder / "better", folder / "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "does not exist" in done.stderr
