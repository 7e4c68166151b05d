"""A cluster of two nodes loses one, gets another and is told that it will go: one run through all of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from distributed.config import load
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.run_directory import RunDirectory
from distributed.world import World
from retrieval_eval.run_files import read_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> Path:
    """A run that has no end of its own; evaluations, two a second, keep its steps few."""
    path = tmp_path / "elastic.yaml"
    path.write_text(
        f"""
run: {{name: elastic, dir: {tmp_path / "runs"}}}
data: {{root: {tiny}, image_size: 24}}
model: {{dim: 16, image: {{kind: cnn, width: 8, blocks: 2}}, text: {{kind: gru, embedding: 16}}}}
objective: {{name: vlc, learn_scale: true}}
optimizer: {{lr: 1.0e-3, schedule: constant}}
train: {{epochs: 5000, global_batch: 48, log_every: 1}}
eval: {{every_steps: 1}}
tracking: {{wandb: disabled}}
cluster: {{workers: 2, min_workers: 1, replace_minutes: 0.05}}
"""
    )
    return path


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head and a node with a CPU each."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def happened(run: RunDirectory, event: str) -> list[str]:
    return [row["text"] for row in read_rows(run.events) if row["event"] == event]


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps(run: RunDirectory) -> list[int]:
    return [row["step"] for row in run.history() if "train/loss" in row]


def test_a_lost_node_is_gone_without_and_a_new_one_taken_in(config, two_nodes, tmp_path) -> None:
    settings = load(config)
    run = RunDirectory(settings.run_dir)
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.train", "--config", str(config)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {
            "RAY_ADDRESS": two_nodes.address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
        },
    )  # fmt: skip
    try:
        wait_until(lambda: len(steps(run)) >= 3, process)
        (lost,) = two_nodes.worker_nodes
        two_nodes.remove_node(lost, allow_graceful=False)
        wait_until(lambda: len(happened(run, "resized")) == 1, process)
        (fewer,) = happened(run, "resized")
        at = len(steps(run))
        wait_until(lambda: len(steps(run)) > at + 1, process)
        new = two_nodes.add_node(num_cpus=1)
        wait_until(lambda: len(happened(run, "resized")) == 2, process)
        at = len(steps(run))
        wait_until(lambda: len(steps(run)) > at + 1, process)
        soon = int((time.time() + 300) * 1000)
        assert GcsClient(address=two_nodes.address).drain_node(new.node_id, 2, "spot", soon)[0]
        wait_until(lambda: any("is to be taken away" in text for text in happened(run, "note")), process)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in output + errors
    first, second = (row["step"] for row in run.history() if "train/workers_before" in row)
    assert fewer == (
        f"2 → 1 workers (no room for more within cluster.replace_minutes=0.05): step {first + 1} goes on with 48 "
        "samples a worker, encoded 24 at a time, the same global batches of 48"
    )
    assert happened(run, "resized")[1] == (
        f"1 → 2 workers (there is room again): step {second + 1} goes on with 24 samples a worker, the same global "
        "batches of 48"
    )
    assert [line for line in output.splitlines() if "→" in line and "workers" in line] == [
        f"  {text}" for text in happened(run, "resized")
    ]
    (restart,) = happened(run, "restart")
    assert "was lost" in restart
    assert happened(run, "making way") == [
        "there is room for 2 workers, 1 are up: all ranks save a checkpoint and make way"
    ]
    done = steps(run)
    assert done == list(range(1, len(done) + 1))

    alone = load(config, ["run.name=alone", "eval.every_steps=null", f"train.stop_after_epochs={len(done) / 3}"])
    other = set_up(alone, resume=False)
    complete(Training(alone, World.join(torch.device("cpu")), lambda _: None))
    ours, theirs = (json.loads((each.checkpoints / "last/position.json").read_text()) for each in (run, other))
    assert ours["step"] == theirs["step"] == len(done)
    assert ours["certificate"] == theirs["certificate"] != ""
    weights, others = (load_file(each.checkpoints / "last/model.safetensors") for each in (run, other))
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-4
