"""``python -m retrieval_eval.evaluate``: what it prints, writes and refuses, by its exit code."""

import hashlib
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from allpairs.command import run
from allpairs.embeddings import EmbeddingSet
from retrieval_eval import evaluate


@pytest.fixture
def command(in_process):
    """Run the command inside this process, up to its exit."""
    return in_process(importlib.import_module("retrieval_eval.evaluate.__main__").app)


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
    other = images + 0.5 * rng.normal(size=images.shape)
    noisy = images[ids] + 2 * rng.normal(size=(40, 8))
    EmbeddingSet(other, noisy, np.arange(20), ids, keys, texts).write(base / "second" / "embeddings" / "test")
    EmbeddingSet(other, noisy, np.arange(20), ids[::-1], keys, texts).write(base / "third" / "embeddings" / "test")
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
    record = json.loads((folder / "first" / "metrics.json").read_text())
    assert record["metrics"] == report.metrics
    assert record["ties"] == report.ties
    for name, title in (("map5", "mAP@5"), ("map_cut5", "mAP@5 (trec)")):
        assert f"{title}: {record['manifest']['metrics'][name]}\n" in out
    assert set(record["intervals"]) == set(report.metrics)
    low, high = record["intervals"]["rsum"]
    assert low <= report.metrics["rsum"] <= high
    assert f"± {(high - low) / 2:.1f}" in out
    manifest = record["manifest"]
    assert (manifest["protocol"], manifest["split"], manifest["data_hash"]) == ("custom", "test", "")
    assert manifest["gallery"] == {"i2t": 40, "t2i": 20}
    assert manifest["intervals"]["clusters"] == 20
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
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["metrics"] == expected
    digest = hashlib.sha256((folder / "positives.json").read_bytes()).hexdigest()
    assert record["manifest"]["data_hash"] == f"sha256:{digest}"
    assert f"{expected['i2t/r1']:.1f}" in out
    assert (tmp_path / "out" / "report.html").exists()
    code, out, _ = command(*arrays, "--one-way", "--no-intervals", "--out", tmp_path / "one")
    assert code == 0
    assert "RSUM" not in out
    assert "±" not in out
    record = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert "intervals" not in record
    assert record["metrics"] == {name: value for name, value in expected.items() if name.startswith("i2t/")}


def test_an_ensemble_of_runs(command, folder, tmp_path):
    code, out, err = command(
        "--run", folder / "first", folder / "second", "--out", tmp_path, "--export", tmp_path / "x"
    )
    assert (code, err) == (0, "")
    first, second = (EmbeddingSet.read(folder / name / "embeddings" / "test") for name in ("first", "second"))
    scores = (first.images @ first.captions.T + second.images @ second.captions.T) / 2
    ranks = 1 + (scores > np.where(np.arange(20)[:, None] == first.caption_ids, scores, -np.inf).max(1)[:, None]).sum(1)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"]["i2t/mean_rank"] == ranks.mean()
    assert record["manifest"]["ensemble"] == [str(folder / "first"), str(folder / "second")]
    assert "first + second · test · custom" in out
    assert (tmp_path / "report.html").exists()
    assert "| first + second | " in (tmp_path / "x" / "rows.md").read_text()
    assert len(list((tmp_path / "x").iterdir())) == 8
    code, out, _ = command("--run", folder / "first", folder / "second")
    assert code == 0
    assert "no report: give --out" in out


def galleries(folder):
    files = {"--queries": "queries.npy", "--gallery": "gallery.npy", "--positives": "positives.json"}
    return [part for flag, name in files.items() for part in (flag, folder / name)]


@pytest.mark.parametrize("flag", ["--out", "--export"])
def test_nothing_that_is_there_is_overwritten(command, folder, tmp_path, flag):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    arguments = (*galleries(folder), flag, mine)
    assert command(*arguments)[0] == 0
    written = {path: path.read_bytes() for path in mine.iterdir()}
    assert len(written) == (3 if flag == "--out" else 9)
    code, out, err = command(*arguments, "--one-way")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith(" exists already; give another, or --overwrite to replace it\n")
    assert {path: path.read_bytes() for path in mine.iterdir()} == written
    code, _, err = command(*arguments, "--one-way", "--overwrite")
    assert (code, err) == (0, "")
    changed = mine / ("metrics.json" if flag == "--out" else "rows.md")
    assert changed.read_bytes() != written[changed]
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("flag", "name", "said"),
    [
        ("--out", "here.html", "reports are a folder; accepted: --out {}"),
        ("--out", "here.JSON", "reports are a folder; accepted: --out {}"),
        ("--export", "here.tex", "exports are a folder; accepted: --export {}"),
        ("--out", "file", "reports are a folder; accepted: a folder"),
    ],
)
def test_a_file_is_not_what_it_writes(command, folder, tmp_path, flag, name, said):  # noqa: PLR0917 -- fixtures
    (tmp_path / "file").write_text("mine")
    code, _, err = command(*galleries(folder), flag, tmp_path / name)
    assert code == 2
    assert err == f"error: {flag} {tmp_path / name}: {said.format(tmp_path / 'here')}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_versions_in_names_of_folders_are_no_endings(command, folder, tmp_path):
    assert command(*galleries(folder), "--out", tmp_path / "v1.2")[0] == 0
    assert (tmp_path / "v1.2" / "report.html").exists()


@pytest.mark.parametrize("fails", ["write_report", "write_json", "write_exports"])
def test_all_files_or_none(command, folder, tmp_path, monkeypatch, fails):
    """A disk that fills, say, at any of the writes."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    arguments = (*galleries(folder), "--out", tmp_path / "out", "--export", tmp_path / "x")
    monkeypatch.setattr(f"retrieval_eval.output.{fails}", full)
    app = importlib.import_module("retrieval_eval.evaluate.__main__").app
    with pytest.raises(OSError, match="No space left"):
        run(app, [str(argument) for argument in arguments])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert command(*arguments)[0] == 0


def test_a_folder_of_embeddings(command, folder, tmp_path):
    of_run = command("--run", folder / "first", "--out", tmp_path / "run")
    embeddings = folder / "first" / "embeddings" / "test"
    code, out, err = command("--embeddings", embeddings, "--out", tmp_path / "e")
    assert (code, err) == (0, "")
    assert "test · test · custom" in out
    records = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "e")]
    assert records[0] == records[1]
    assert "no report: give --out" in command("--embeddings", embeddings)[1]
    others = [folder / name / "embeddings" / "test" for name in ("first", "second")]
    both = command("--embeddings", *others)[1]
    assert [line for line in both.splitlines() if "RSUM" in line] == [
        line for line in command("--run", folder / "first", folder / "second")[1].splitlines() if "RSUM" in line
    ]
    assert of_run[0] == 0


def test_every_split_of_a_run_has_a_report_of_its_own(command, folder, tmp_path):
    run_folder = tmp_path / "r"
    EmbeddingSet.read(folder / "first" / "embeddings" / "test").write(run_folder / "embeddings" / "test")
    assert command("--run", run_folder)[0] == 0
    before = (run_folder / "report.html").read_bytes()
    for split, rest in (("val", "; `python -m distributed.embed --run {} --split val` makes them"),
                        ("coco-val", "; `python -m distributed.embed --run {} --split coco-val` makes them"),
                        ("tset", "; did you mean 'test'?")):  # fmt: skip
        code, _, err = command("--run", run_folder, "--split", split)
        assert code == 2
        assert err == f"error: {run_folder} has no embeddings of the split {split!r}{rest.format(run_folder)}\n"
    EmbeddingSet.read(folder / "second" / "embeddings" / "test").write(run_folder / "embeddings" / "val")
    code, out, err = command("--run", run_folder, "--split", "val")
    assert (code, err) == (0, "")
    assert "r · val · custom" in out
    assert (run_folder / "report.html").read_bytes() == before
    assert {path.name for path in run_folder.iterdir()} == {
        "embeddings", "report.html", "metrics.json", "report_val.html", "metrics_val.json"
    }  # fmt: skip


def test_a_subset_leaves_the_report_of_the_run_alone(command, folder, tmp_path):
    (tmp_path / "some.txt").write_text("3\n5\n7\n")
    before = {path: path.stat().st_mtime_ns for path in (folder / "first").iterdir()}
    code, out, err = command("--run", folder / "first", "--subset", tmp_path / "some.txt")
    assert (code, err) == (0, "")
    assert "some.txt" in out
    assert {path: path.stat().st_mtime_ns for path in (folder / "first").iterdir()} == before
    code, _, err = command("--run", folder / "first", "--subset", tmp_path / "some.txt", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    manifest = json.loads((tmp_path / "out" / "metrics.json").read_text())["manifest"]
    assert manifest["queries"] == {"i2t": 3, "t2i": 6}
    assert manifest["gallery"] == {"i2t": 40, "t2i": 20}
    assert "a subset (some.txt) against the full gallery" in (tmp_path / "out" / "report.html").read_text()


def test_shards_state_and_an_approximate_index(command, folder, tmp_path, monkeypatch):
    plain = command("--run", folder / "first")[1]
    code, out, err = command("--run", folder / "first", "--state", tmp_path / "state")
    assert (code, out, err) == (0, plain, "")
    assert list((tmp_path / "state").rglob("*"))
    asked = {}

    def watched(*arguments, shards=None, **options):
        asked["shards"] = shards
        return evaluate(*arguments, **options)

    monkeypatch.setattr("retrieval_eval.measure.evaluate", watched)
    code, out, err = command("--run", folder / "first", "--shards", "3", "--approximate", "hnsw")
    assert (code, err) == (0, "")
    assert asked["shards"] == 3
    assert "hnsw" in out.lower()


def test_one_image_has_metrics_and_no_intervals(command, tmp_path):
    np.save(tmp_path / "one.npy", np.ones((1, 2)))
    np.save(tmp_path / "three.npy", np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]]))
    (tmp_path / "positives.json").write_text("[[0]]")
    given = ("--queries", tmp_path / "one.npy", "--gallery", tmp_path / "three.npy")
    code, out, err = command(*given, "--positives", tmp_path / "positives.json", "--one-way")
    assert (code, err) == (0, "")
    assert "no intervals: all queries are connected" in out
    assert "±" not in out


def test_five_folds(command, tmp_path):
    rng = np.random.default_rng(0)
    X, ids = rng.normal(size=(5000, 4)), np.repeat(np.arange(5000), 5)
    T = X[ids] + rng.normal(size=(25_000, 4))
    run_folder = tmp_path / "coco"
    EmbeddingSet(X, T, np.arange(5000), ids, [""] * 5000, [""] * 25_000, protocol="coco-1k-5fold").write(
        run_folder / "embeddings" / "test"
    )
    code, out, err = command("--run", run_folder)
    assert (code, err) == (0, "")
    record = json.loads((run_folder / "metrics.json").read_text())
    assert record["manifest"]["protocol"] == "coco-1k-5fold"
    assert record["manifest"]["intervals"]["clusters"] == 5000
    low, high = record["intervals"]["rsum"]
    assert low < record["metrics"]["rsum"] < high
    assert "coco-1k-5fold" in out
    assert "mean over 5 consecutive blocks" in (run_folder / "report.html").read_text()


def test_mistakes_end_with_code_2_and_one_line(command, folder, tmp_path):
    queries, gallery, positives = (folder / name for name in ("queries.npy", "gallery.npy", "positives.json"))
    (tmp_path / "bad.json").write_text("[[0, 1],\n [2,,]]")
    (tmp_path / "flat.json").write_text("[0, 100]")
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
        (
            ("--run", run_folder, "--protocol", "coco-5k"),
            "not the gallery of coco-5k: it has 20 images; accepted: 5,000",
        ),
        (("--run", run_folder, folder / "third"), "are not of the same queries: the caption ids differ first in row 0"),
        (("--run", run_folder, "--subset", tmp_path / "flat.json"), "no image has the id 100"),
        (("--run", run_folder, "--approximate", "hsnw"), "did you mean 'hnsw'"),
        ((*arrays(), "--subset", positives), "--subset is for --run"),
        ((*arrays(), "--protocol", "coco-5k"), "--protocol coco-5k is for --run"),
        (("--run", run_folder, "--queries", queries), "exclude each other"),
        (("--run", run_folder, "--embeddings", run_folder), "--run and --embeddings exclude each other"),
        (("--embeddings", run_folder / "embeddings" / "test", "--split", "val"), "--split is for --run"),
        (("--embeddings", run_folder), "manifest.json"),
        (("--run", run_folder, "--split", "../test"), "'../test' is a path"),
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
        (("config.yaml", "a: [1"), "config.yaml, line 1, column 6: not valid YAML"),
        (("config.yaml", "[" * 5000), "config.yaml, line 1: nested deeper than 40 levels"),
        (("config.yaml", f"a: {'9' * 5000}"), "config.yaml, line 1: '99999999999999999999'… (5,000 characters) is an"),
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
