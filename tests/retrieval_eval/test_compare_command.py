"""``python -m retrieval_eval.compare``: its table, files, exit codes and refusals."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from allpairs.embeddings import EmbeddingSet
from retrieval_eval import evaluate
from retrieval_eval.compare import app, main
from retrieval_eval.folds import MeasuredFold
from retrieval_eval.seeds import compare_seeds
from retrieval_eval.uncertainty import clusters_of


@pytest.fixture
def command(in_process):
    return in_process(app)


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


def test_paths_from_python(folder, capsys, tmp_path):
    main(folder / "worse", folder / "better", out=tmp_path / "out")
    assert f"{folder / 'worse'} and" in capsys.readouterr().out.replace("\n", "")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["metrics"]["rsum"]["difference"] > 0


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


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """Three seeds of two methods: the second is better by less than its seeds differ, or by more."""
    base = tmp_path_factory.mktemp("seeds")
    rng = np.random.default_rng(8)
    images, ids = rng.normal(size=(60, 8)), np.repeat(np.arange(60), 2)
    keys, texts = [f"image {i}" for i in range(60)], [f"caption {i}" for i in range(120)]
    noises = {"a": (1.5, 2.6, 2.0), "near": (1.4, 2.5, 1.95), "far": (0.8, 0.9, 0.7)}
    for name, levels in noises.items():
        for seed, noise in enumerate(levels):
            captions = images[ids] + noise * rng.normal(size=(120, 8))
            kept = EmbeddingSet(images, captions, np.arange(60), ids, keys, texts, data_hash="one")
            kept.write(base / f"{name}-{seed}" / "embeddings" / "test")
    return base


def test_several_seeds_a_side_are_their_means_and_doubt_about_seeds_counts(command, seeded, tmp_path):
    changes = {}
    for other in ("near", "far"):
        code, out, err = command(f"{seeded}/a-*", f"{seeded}/{other}-?", "--out", tmp_path / other)
        assert (code, err) == (0, ""), err
        assert "3 and 3 seeds, means over them" in " ".join(out.split())
        found = json.loads((tmp_path / other / "comparison.json").read_text())
        assert found["seeds"] == [3, 3]
        changes[other] = found["metrics"]["rsum"]
        for side, key in (("a", "first"), (other, "second")):
            expected = np.mean([metrics(seeded / f"{side}-{seed}")["rsum"] for seed in range(3)])
            assert changes[other][key] == pytest.approx(expected)
    assert changes["near"]["low"] < 0 < changes["near"]["high"]
    assert changes["near"]["p"] > 0.2
    assert changes["far"]["low"] > 0
    assert changes["far"]["p"] < 0.01
    page = (tmp_path / "far" / "comparison.html").read_text()
    assert "Means over 3 and 3 seeds" in page
    # One seed against one leaves only the images to doubt: a narrower interval than over unlike seeds.
    command(seeded / "a-0", seeded / "near-0", "--out", tmp_path / "one")
    one = json.loads((tmp_path / "one" / "comparison.json").read_text())["metrics"]["rsum"]
    assert one["high"] - one["low"] < changes["near"]["high"] - changes["near"]["low"]


def test_a_pattern_that_matches_nothing_is_named(command, seeded):
    code, _, err = command(f"{seeded}/b-*", f"{seeded}/a-*")
    assert code == 2
    assert "no folder matches" in err


def test_seeds_are_drawn_beside_images():
    """Where all images are alike, the interval is that of means over seeds, which can be counted by hand."""
    report = evaluate(np.eye(4), np.eye(4), np.arange(4), np.arange(4))

    def run(value):
        per_query = {way: {name: np.full(4, value) for name in of} for way, of in report.per_query.items()}
        fixed = replace(report, per_query=per_query, metrics=dict.fromkeys(report.metrics, value))
        return [MeasuredFold(fixed, {}, {}, clusters_of(report))]

    found = compare_seeds([run(10.0), run(20.0), run(60.0)], [run(50.0)] * 3, ("a", "b")).changes["i2t/r1"]
    assert (found.first, found.second, found.difference) == (30.0, 50.0, 20.0)
    # 1 in 27 draws takes the seed of 60 three times, 1 in 27 that of 10: both beyond the outer 2.5 %.
    assert (found.low, found.high) == (-10.0, 40.0)
    # The mean of three draws is 50 or more in 1 + 0 of 27: 60+60+60 alone, as 60+60+20 is 46.7.
    assert found.p == pytest.approx(2 / 27, abs=0.04)
