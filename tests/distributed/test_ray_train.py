"""Real runs through Ray: two workers, real process groups, real W&B files."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from distributed.train import app
from retrieval_eval.ray_cluster import cluster
from retrieval_eval.run_files import read_rows
from tests.distributed.faults import harmed_worker
from tests.distributed.test_loop import train
from tests.distributed.wandb_files import assert_whole, wandb_records

ROOT = Path(__file__).parents[2]


def command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours as a user would."""
    clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=500,
        env=clean | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"} | environment, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def emoji_run(pairs, tmp_path_factory) -> Path:
    """A short run of two workers on the real pairs."""
    runs = tmp_path_factory.mktemp("runs")
    result = command(
        "distributed.train", "--config", "configs/emoji.yaml", f"data.root={pairs}", f"run.dir={runs}",
        "train.epochs=4", "train.global_batch=128", "cluster.workers=2",
        "tracking.step_times=true", "--profile",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (runs / "emoji" / "stdout.txt").write_text(result.stdout)
    return runs / "emoji"


@pytest.mark.realdata
def test_two_workers_learn_real_pairs(emoji_run):
    summary = json.loads((emoji_run / "summary.json").read_text())
    gallery = len(np.load(emoji_run / "embeddings/test/images.npy"))
    assert gallery >= 500
    # Chance for text to image: k of the gallery.
    assert summary["test/t2i/r10"] > 10 * 100 * 10 / gallery
    assert summary["test/i2t/r10"] > 10 * 100 * 10 / gallery


@pytest.mark.realdata
def test_a_run_shows_itself(emoji_run):
    output = (emoji_run / "stdout.txt").read_text()
    assert "samples/s" in output
    assert re.search(r"^  [\d,]+ ms a step: read \d+% .*encode \d+% .*backward \d+%", output, re.MULTILINE)
    assert re.search(r"^steps        \w+ \d+%, .*; [\d,]+ samples/s, [\d,]+ a worker$", output, re.MULTILINE)
    trace = emoji_run / "profile/rank-00000.json.gz"
    assert f"profile of steps 8 to 10: {trace}; open it in https://ui.perfetto.dev" in output
    assert [path.name for path in trace.parent.iterdir()] == [trace.name]
    named = [event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert {name: named.count(name) for name in ("step: read", "step: encode", "step: optimizer")} == {
        "step: read": 3, "step: encode": 3, "step: optimizer": 3
    }  # fmt: skip
    assert "Time of a step" in (emoji_run / "report.html").read_text()
    assert "epoch 4" in output
    assert "RSUM" in output
    assert "mAP@5: sum of the precisions at the hits in the top 5, over the hits found" in " ".join(output.split())
    assert str(emoji_run / "report.html") in output
    rows = [json.loads(line) for line in (emoji_run / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "epoch", "samples_seen"} <= row.keys() for row in rows)
    assert [row["epoch"] for row in rows if "val/rsum" in row] == [1, 2, 3, 4]


@pytest.mark.realdata
def test_wandb_files_hold_the_curves_and_the_examples(emoji_run):
    (file,) = (emoji_run / "wandb").glob("offline-run-*/run-*.wandb")  # rank 0 only: one run
    assert_whole(emoji_run)
    records = list(wandb_records(file))
    history = [
        item.key or item.nested_key[0]
        for r in records
        if r.WhichOneof("record_type") == "history"
        for item in r.history.item
    ]
    assert {"samples_seen", "val/rsum", "train/loss", "examples"} <= set(history)
    defined = {r.metric.name: r.metric for r in records if r.WhichOneof("record_type") == "metric"}
    assert defined["val/rsum"].summary.max
    assert defined["val/rsum"].step_metric == "samples_seen"
    (table,) = (json.loads(path.read_text()) for path in file.parent.glob("files/media/table/examples*.json"))
    assert table["columns"] == ["direction", "rank", "image", "query", "retrieved", "right answer"]
    assert len(table["data"]) == 16
    assert all(row[2] == "Image" and row[3] and row[4] for row in table["data"])
    # Eight different queries; texts may retrieve the same picture, which W&B stores once.
    assert len(list(file.parent.glob("files/media/images/**/*.png"))) >= 8


@pytest.fixture(scope="module")
def tiny_config_file(tiny, tmp_path_factory) -> Path:
    """Two workers on the tiny data."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(
        f"""
run: {{name: part, dir: runs}}
data: {{root: {tiny}, image_size: 24}}
model: {{dim: 16, image: {{kind: cnn, width: 8, blocks: 2}}, text: {{kind: bigru, embedding: 16, word_dropout: 0.1}}}}
objective: {{name: vlc, learn_scale: true}}
train: {{epochs: 2, global_batch: 22, checkpoint_every_steps: 3}}
tracking: {{wandb: disabled}}
cluster: {{workers: 2}}
"""
    )
    return file


def test_a_mistake_that_one_worker_meets_ends_the_run_once(tiny_config, tmp_path):
    run, _, _ = train(tiny_config("part", train={"epochs": 1}))
    run.summary.unlink()  # all that is left to do is the end
    foreign = run.embeddings("test") / "thesis.txt"
    shutil.rmtree(foreign.parent)
    foreign.parent.mkdir()
    foreign.write_text("not embeddings: rank 0 refuses to replace them, at the end")
    result = command("distributed.train", "--config", str(run.config), "--resume", "cluster.workers=2")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("stopped: rank 0 on ")
    assert str(foreign.parent) in line
    assert "restart" not in result.stdout
    assert foreign.exists()


def test_a_mistake_ends_with_one_line_and_code_2(tmp_path):
    result = command("distributed.train", "--config", "configs/emoji.yaml", "optimizer.lrr=1")
    assert result.returncode == 2
    assert (
        result.stderr.strip()
        == "error: configs/emoji.yaml: optimizer.lrr: unknown key (value 1); did you mean 'optimizer.lr'?"
    )
    result = command("distributed.train", "--confg", "configs/emoji.yaml")
    assert result.returncode == 2
    assert "--config" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_what_goes_wrong_in_one_worker_ends_the_run_with_one_line(tiny_config_file, tmp_path, in_process, monkeypatch):
    """In three runs of one Ray; what every rank says is in test_strategies.py."""
    said = {
        "nan_weights": r"the loss is nan at step 3 \(epoch 1\): rank 1: 11 of 11 image embeddings are not finite",
        "another_rate": r"the ranks do not train alike: optimizer\.lr is 0\.001 on rank 0, 0\.002 on rank 1; all must",
        "broken_shard": r"rank 1: \S+/cut/\S+\.tar: \S+: the shard ends inside this sample: it was cut off",
    }
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setattr("distributed.worker.train_worker", harmed_worker)
    workers = []
    with cluster(cpus=2):
        for fault, line in said.items():
            words = "--config", tiny_config_file, f"run.dir={tmp_path}", f"run.name={fault}"
            code, output, errors = in_process(app)(*words)
            took = time.time() - (tmp_path / fault / "fault").stat().st_mtime
            assert code == 1, errors
            (told,) = errors.strip().splitlines()
            assert re.search(f"^stopped: .*{line}", told), told
            assert "Traceback" not in output
            assert "restart" not in output
            assert took < 20, fault
            (placed,) = [row for row in read_rows(tmp_path / fault / "events.jsonl") if row["event"] == "placed"]
            workers += [rank["pid"] for rank in placed["ranks"].values()]
            assert not (tmp_path / fault / "checkpoints").exists()
        ending = time.monotonic()
        while any(psutil.pid_exists(pid) for pid in workers):
            assert time.monotonic() - ending < 20
            time.sleep(0.1)
    assert len(workers) == 6
