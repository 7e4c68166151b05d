"""A signal to the training command: a checkpoint at the step, one line that says how to go on, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from allpairs.errors import UserError
from distributed import stopping
from distributed.checkpoints import Checkpoints
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.run_directory import prepare
from distributed.stopping import StopSignals
from distributed.world import World
from tests.distributed.test_ray_train import ROOT
from tests.distributed.wandb_files import assert_whole
from tune.config import Search
from tune.runner import open_folder


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


@pytest.fixture
def started(config: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the training command in a process group of its own, as a shell does; nothing of it outlives the test."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.train", "--config", str(config), *arguments],
            cwd=ROOT, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that `process` has started, and those they have."""
    found = psutil.Process(process.pid).children(recursive=True)
    assert len(found) > 2, "Ray and its workers"
    return found


def alive_after(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=seconds)[1]


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


# SIGTERM, as `ray job stop`, SLURM and Kubernetes send it to the command alone, is in tests/benchmarks/test_drills.py.
def test_ctrl_c_in_a_terminal_tells_all_processes_and_saves(config, started) -> None:
    runs = config.parent / "runs"
    process = started("--resume", "auto", "run.name=part")
    wait_until(lambda: len(rows(runs / "part")) >= 20, process)
    others = family(process)
    os.killpg(process.pid, signal.SIGINT)
    asked = time.monotonic()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output + errors
    assert time.monotonic() - asked < 30
    assert "Traceback" not in output + errors
    assert "SIGINT: all ranks finish their step and save a checkpoint" in output
    step = json.loads((runs / "part/checkpoints/last/position.json").read_text())["step"]
    assert 20 <= step < 240
    assert rows(runs / "part")[-1]["step"] == step
    assert f"stopped after step {step:,} as asked, with a checkpoint; --resume auto continues" in output
    assert alive_after(others, 20) == []
    assert [code for code, _ in assert_whole(runs / "part")] == [1]


def test_a_signal_before_the_workers_are_up_ends_at_once_and_says_what_there_is(config, started) -> None:
    process = started("run.name=early")
    events = config.parent / "runs/early/events.jsonl"
    wait_until(events.exists, process)  # Ray is up and asked for workers
    others = family(process)
    os.killpg(process.pid, signal.SIGTERM)  # Ray's own processes are in groups of their own, and hear nothing
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output + errors
    assert "Traceback" not in output + errors
    assert "SIGTERM: stopped at once; nothing was trained yet; --resume auto continues" in errors
    assert alive_after(others, 20) == []


def test_workers_of_an_earlier_attempt_are_not_waited_for(tiny_config, monkeypatch) -> None:
    monkeypatch.setattr(stopping.Flag, "clear", lambda flag: None)
    run = prepare(tiny_config("again"), resume=False)
    run.events.write_text(json.dumps({"event": "placed", "text": "2 worker(s) up"}) + "\n")
    signals = StopSignals(run, print)
    with pytest.raises(KeyboardInterrupt):
        signals.call(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5)))
    assert signals.received == signal.SIGTERM


def test_a_step_that_is_saved_is_not_saved_again(tiny_config, monkeypatch) -> None:
    saved = []
    save = Checkpoints.save

    def counted(self, strategy, progress, *, best):
        saved.append(progress.step)
        save(self, strategy, progress, best=best)

    monkeypatch.setattr(Checkpoints, "save", counted)
    config = tiny_config("asked", train={"checkpoint_every_steps": 2, "epochs": 3, "global_batch": 22})
    run = set_up(config, resume=False)
    # A save in the place of the folder that `last` names would leave a moment without any checkpoint.
    asked = iter([False, False, True])
    training = Training(config, World.join(torch.device("cpu")), print, stop_asked=lambda: next(asked))
    assert complete(training) is None
    assert saved == [2]
    assert run.last_step() == 2
    training = Training(config, World.join(torch.device("cpu")), print, stop_asked=lambda: True)
    assert complete(training) is None
    assert saved == [2]


@pytest.mark.parametrize(
    ("key", "path"),
    [("run.dir", "runs"), ("data.root", "data/mine"), ("data.train", "mine"), ("model.init_from", "runs/before")],
)
def test_a_path_inside_a_job_s_temporary_folder_is_refused(tiny_config, tmp_path, monkeypatch, key, path) -> None:
    section, name = key.split(".")
    more = {"data": {"root": "."}} if key == "data.train" else {}
    config = tiny_config(**more | {section: more.get(section, {}) | {name: path}})
    inside = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_0"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    form = rf"^{key}={path} lies in the temporary folder .* {key}=\$PWD/{path} from the shell that submits"
    with pytest.raises(UserError, match=form):
        set_up(config, resume=False)
    search = Search(name="s", base=Path("x"), dir=Path("searches"), space={"train.seed": {"grid": [0]}})
    with pytest.raises(UserError, match=r"^dir=searches lies in the temporary folder"):
        open_folder(search, resume=False)
    assert list(inside.iterdir()) == []


def test_resume_auto_starts_what_is_not_there_and_only_that(tiny_config) -> None:
    config = tiny_config("fresh")
    with pytest.raises(UserError, match="there is no run"):
        prepare(config, resume=True)
    assert prepare(config, resume="auto").config.exists()
    assert prepare(config, resume="auto").last_step() is None
    with pytest.raises(UserError, match="exists but is not finished"):
        prepare(config, resume=False)
