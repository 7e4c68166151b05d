"""A signal to the training command: a checkpoint at the step, one line that says how to go on, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allpairs.errors import UserError
from distributed.run_directory import prepare, refuse_job_folder
from tests.distributed.test_ray_train import ROOT, command

ALIVE = "allpairs-test-stopping"


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
run: {{name: x, dir: {tmp_path / "runs"}}}
data: {{root: {tiny}, image_size: 24}}
model: {{dim: 16, image: {{kind: cnn, width: 8, blocks: 2}}, text: {{kind: bigru, embedding: 16, word_dropout: 0.1}}}}
objective: {{name: vlc, learn_scale: true}}
train: {{epochs: 60, global_batch: 22, log_every: 1}}
eval: {{every: 1000}}
cluster: {{workers: 2}}
"""
    )
    return path


def rows(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def processes_of(mark: str) -> list[int]:
    """Every process whose environment carries `mark`, as all descendants of a command inherit it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"ALLPAIRS_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_after_sigterm_resume_auto_ends_bit_identical(config: Path, number: signal.Signals) -> None:
    arguments = ["distributed.train", "--config", str(config), "--resume", "auto"]
    runs = config.parent / "runs"
    mark = f"{ALIVE}-{os.getpid()}-{number}"
    clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "run.name=part"], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean | {"ALLPAIRS_MARK": mark},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(rows(runs / "part")) < 20 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.kill(process.pid, number)
    asked = time.monotonic()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output + errors
    assert time.monotonic() - asked < 30
    assert "Traceback" not in output + errors
    assert f"{number.name}: all ranks finish their step and save a checkpoint" in output
    step = json.loads((runs / "part/checkpoints/last/position.json").read_text())["step"]
    assert 20 <= step < 240
    assert rows(runs / "part")[-1]["step"] == step
    assert f"stopped after step {step:,} as asked, with a checkpoint; --resume auto continues" in output
    left = time.monotonic() + 20
    while processes_of(mark) and time.monotonic() < left:
        time.sleep(0.5)
    assert processes_of(mark) == []

    if number == signal.SIGINT:
        return
    again = command(*arguments, "run.name=part")
    assert again.returncode == 0, again.stderr
    whole = command(*arguments, "run.name=whole")
    assert whole.returncode == 0, whole.stderr
    for name in ("model.safetensors", "objective.safetensors"):
        one, other = (load_file(runs / run / "checkpoints/last" / name) for run in ("whole", "part"))
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    losses = [[row.get("train/loss") for row in rows(runs / run)] for run in ("whole", "part")]
    assert losses[0] == losses[1]


def test_a_run_inside_a_job_s_temporary_folder_is_refused() -> None:
    inside = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0/runs/x")
    with pytest.raises(UserError, match=r"^run\.dir=runs lies in the temporary folder .* run\.dir=\$PWD/runs"):
        refuse_job_folder(inside, "run.dir=runs", Path("runs"))
    refuse_job_folder(Path("/shared/runs/x"), "run.dir=/shared/runs", Path("runs"))


def test_resume_auto_starts_what_is_not_there_and_only_that(tiny_config) -> None:
    config = tiny_config("fresh")
    with pytest.raises(UserError, match="there is no run"):
        prepare(config, resume=True)
    assert prepare(config, resume="auto").config.exists()
    assert prepare(config, resume="auto").last_step() is None
    with pytest.raises(UserError, match="exists but is not finished"):
        prepare(config, resume=False)
