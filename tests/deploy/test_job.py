"""`ray start --head` and `ray job submit` as the README says, on one machine, with token authentication on."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node with ports, token and home of its own. Yields the dashboard's address and a client's environment."""
    home = tmp_path / "home"
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
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_up(process, f"http://127.0.0.1:{dashboard}", environment)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        process.terminate()  # `ray start --block` takes its processes with it
        process.wait(60)


def submit(address: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Submit a job from the checkout and wait for its end, as a user's shell would."""
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)


def test_a_submitted_job_trains_and_a_stranger_is_refused(head, tiny, tmp_path):
    address, environment = head
    result = submit(
        address, environment, "python", "-m", "distributed.train", "--config", "configs/emoji.yaml",
        f"data.root={tiny}", f"run.dir={tmp_path}/runs", "run.name=job", "cluster.workers=2", "data.image_size=24",
        "train.epochs=1", "train.global_batch=22", "model.dim=16", "model.image.width=8", "model.image.blocks=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "report.html" in result.stdout
    assert "succeeded" in result.stdout
    assert json.loads((tmp_path / "runs/job/summary.json").read_text())["samples_seen"] == 103

    (tmp_path / "nobody").mkdir()
    without = {key: value for key, value in environment.items() if key != "RAY_AUTH_MODE"} | {
        "HOME": str(tmp_path / "nobody")
    }
    refused = submit(address, without, "python", "-c", "print(1)")
    assert refused.returncode != 0
    assert "Authentication" in refused.stdout + refused.stderr
