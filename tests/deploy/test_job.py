"""`ray start --head` and `ray job submit` as the README says, on one machine, with token authentication on."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.config import load
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.provenance import source_commit
from distributed.run_directory import RunDirectory
from distributed.world import World
from retrieval_eval.run_files import read_rows
from tests.distributed.wandb_files import assert_whole

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_until_up(process: subprocess.Popen[bytes], address: str, environment: dict[str, str]) -> None:
    """`ray job list` answers once the dashboard does; each attempt waits by itself."""
    for _ in range(30):
        assert process.poll() is None, "ray start ended"
        command = [RAY, "job", "list", "--address", address]
        if subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False).returncode == 0:
            return
    raise AssertionError("the head node did not come up")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node with ports, token and home of its own. Yields the dashboard's address and a client's environment.

    GCS in that environment is the address by which Ray's own processes know it.
    """
    folder = tmp_path_factory.mktemp("head")
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray/auth_token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in a shell with the environment activated
    environment = kept | {
        "PATH": path,
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    port, dashboard = free_port(), free_port()
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
        f"--temp-dir=/tmp/r{port}",
    ]  # fmt: skip
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_up(process, f"http://127.0.0.1:{dashboard}", environment)
        yield f"http://127.0.0.1:{dashboard}", environment | {"GCS": f"127.0.0.1:{port}"}
    finally:
        process.terminate()  # `ray start --block` takes its processes with it
        process.wait(60)


def shell(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout and wait for its end, as a user's shell would."""
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)


def overrides(tiny: Path, runs: Path) -> list[str]:
    """A run that lasts long enough to be stopped."""
    return [
        f"data.root={tiny}", f"run.dir={runs}", "run.name=job", "data.image_size=24", "train.epochs=150",
        "train.global_batch=22", "model.dim=16", "model.image.width=8", "model.image.blocks=2", "eval.every=1000",
        "cluster.workers=1",  # as many as this process is
    ]  # fmt: skip


def rows(run: Path) -> list[dict]:
    return read_rows(run / "metrics.jsonl")


def undisturbed(tiny: Path, runs: Path) -> Path:
    """The same run in this process, with as many threads as a worker has."""
    config = load(ROOT / "configs/emoji.yaml", [*overrides(tiny, runs), "tracking.wandb=disabled"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = set_up(config, resume=False)
        assert complete(Training(config, World.join(torch.device("cpu")), lambda _: None)) is not None
    finally:
        torch.set_num_threads(threads)
    return run.root


def test_a_job_that_is_stopped_goes_on_as_if_it_had_not_been(head, tiny, tmp_path):
    address, environment = head
    run = tmp_path / "runs/job"
    words = ["python", "-m", "distributed.train", "--config", "configs/emoji.yaml", *overrides(tiny, tmp_path / "runs")]
    words += ["--resume", "auto"]

    first = subprocess.Popen(
        [sys.executable, "-m", "deploy.submit", "--address", address, "--submission-id", "first", "--", *words],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        while not rows(run):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.1)
        stopped = shell(environment, RAY, "job", "stop", "--address", address, "first")
        output, _ = first.communicate(timeout=120)
    finally:
        first.kill()
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert re.search(r"^upload   \d+ files, ", output, re.MULTILINE), output
    assert "SIGTERM: all ranks finish their step and save a checkpoint" in output
    assert "cluster.device=auto: no GPU on this Ray cluster, so this run computes on CPUs" in output
    assert "Traceback" not in output
    step = RunDirectory(run).last_step()
    assert step is not None
    assert 0 < step < 750
    assert f"stopped after step {step:,} as asked, with a checkpoint; --resume auto continues" in output
    assert not (run / "summary.json").exists()

    submit = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--"]
    second = shell(environment, *submit, *words)  # the plain command line of Ray
    assert second.returncode == 0, second.stdout + second.stderr
    assert "report.html" in second.stdout
    assert "succeeded" in second.stdout
    origin = json.loads((run / "provenance.json").read_text())
    commits = [(session["git_commit"], session["git_dirty"]) for session in (origin, *origin["resumed"])]
    assert commits == [source_commit(), (None, None)]  # an upload knows no commit

    whole = undisturbed(tiny, tmp_path / "whole")
    for name in ("model.safetensors", "objective.safetensors"):
        one, other = (load_file(root / "checkpoints/last" / name) for root in (whole, run))
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    losses = {row["step"]: row["train/loss"] for row in rows(whole) if "train/loss" in row}
    again = [(row["step"], row["train/loss"]) for row in rows(run) if "train/loss" in row]
    assert len(again) == len({step for step, _ in again})
    # The step at which it was stopped has a row of its own, of the steps since the row before.
    assert {step for step, _ in again} == losses.keys() | {step}
    (kept, new) = ([loss for at, loss in again if (at < step) == early] for early in (True, False))
    assert kept == [loss for at, loss in losses.items() if at < step]
    assert new[-1] == list(losses.values())[-1]

    assert [code for code, _ in assert_whole(run)][1:] == [0]  # W&B's two files hold each row of metrics.jsonl once

    (tmp_path / "nobody").mkdir()
    without = {key: value for key, value in environment.items() if key != "RAY_AUTH_MODE"}
    refused = shell(without | {"HOME": str(tmp_path / "nobody")}, *submit, "python", "-c", "print(1)")
    assert refused.returncode != 0
    assert "Authentication" in refused.stdout + refused.stderr


SLOW = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(5)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "up").touch()
time.sleep(300)
"""


def test_a_job_that_takes_its_time_to_save_is_not_killed(head, tmp_path):
    address, environment = head
    submit = [sys.executable, "-m", "deploy.submit", "--address", address, "--submission-id", "slow", "--no-wait", "--"]
    submitted = shell(environment, *submit, "python", "-c", SLOW, str(tmp_path))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + 120
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stopped = shell(environment, RAY, "job", "stop", "--address", address, "slow")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert (tmp_path / "saved").exists()


ASK = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from distributed.config import load
from distributed.doctor.cluster import check_cluster
print(json.dumps([asdict(row) for row in check_cluster(load(Path("configs/emoji.yaml"), sys.argv[1:]))]))
"""


def test_the_doctor_asks_the_nodes_of_a_cluster_and_knows_a_wrong_token(head, tiny, tmp_path):
    dashboard, environment = head

    def ask(**more: str) -> list[dict]:
        done = shell(environment | more, sys.executable, "-c", ASK, *overrides(tiny, tmp_path / "runs"))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    by_job = ask(RAY_API_SERVER_ADDRESS=dashboard)
    assert [row["check"].split()[0] for row in by_job] == ["ray", "ray", "ray", "node"], by_job
    assert by_job[1]["found"] == "1 node(s): 2 CPU, 0 GPU, 0 tune_driver; no search can run"
    assert by_job[3]["status"] == "ok"
    assert by_job[3]["found"].startswith(f"run.dir {tmp_path / 'runs'} written and read; ")
    gcs = environment["GCS"]
    from_here = ask(RAY_ADDRESS=gcs)
    assert from_here[1:] == by_job[1:]
    assert list(tmp_path.glob(".allpairs-doctor-*")) == []
    (wrong,) = ask(RAY_ADDRESS=gcs, RAY_AUTH_TOKEN="f" * 64)
    assert wrong["found"] == f"RAY_ADDRESS={gcs} refuses this token"
    assert wrong["remedy"].startswith("RAY_AUTH_TOKEN goes before any file: ")
