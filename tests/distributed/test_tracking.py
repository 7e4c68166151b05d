"""Weights & Biases holds metrics.jsonl row for row, whatever ended the run; tried on real files of wandb's."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from allpairs.errors import UserError
from distributed.config import load
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.run_directory import RunDirectory
from distributed.tracking import server as tracking_server
from distributed.tracking import wandb_run
from distributed.tracking.__main__ import app
from distributed.tracking.segments import segments
from distributed.tracking.server import settle
from distributed.tracking.sync import sync
from distributed.train import app as train_app
from distributed.world import World
from tests.distributed.wandb_files import assert_whole
from tests.distributed.wandb_server import KEY, Server

OFFLINE = {"wandb": "offline", "examples": 2}


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A home of its own, with no account in it, and nothing left of earlier runs in wandb."""
    import wandb

    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch):
    with Server().serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


def train(config, *, resume=False):
    run = set_up(config, resume=resume)
    complete(Training(config, World.join(torch.device("cpu")), lambda _: None))
    return run


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished run whose W&B files, at a row per step, exceed the block of 32 KiB that wandb writes at a time."""
    root = tmp_path_factory.mktemp("finished")
    (root / "run.yaml").write_text(
        json.dumps(
            {
                "run": {"name": "run", "dir": str(root)},
                "data": {"root": str(tiny), "image_size": 24},
                "model": {"dim": 8, "image": {"kind": "cnn", "width": 4, "blocks": 1}, "text": {"kind": "gru"}},
                "train": {"epochs": 12, "global_batch": 22, "log_every": 1},
                "tracking": OFFLINE,
            }
        )
    )
    return train(load(root / "run.yaml", []))


def copy(run: RunDirectory, to: Path) -> RunDirectory:
    shutil.copytree(run.root, to, symlinks=True)
    return RunDirectory(to)


def test_an_undisturbed_run_is_tracked_row_for_row(finished):
    ((exit_code, _),) = assert_whole(finished.root)
    assert exit_code == 0
    (file,) = segments(finished)
    assert file.file.stat().st_size > 2 * 32 * 1024
    rates = [row["train/learning_rate"] for row in finished.history() if "train/loss" in row]
    # Five steps of linear warm-up, then a cosine to zero over the other 55.
    assert rates[:5] == pytest.approx([1e-3 * step / 6 for step in range(1, 6)])
    assert rates[5] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 * 0.5 * (1 + torch.cos(torch.tensor(54 / 55 * torch.pi)).item()), rel=1e-3)


def test_everything_of_wandb_lies_inside_the_run(tiny_config, tmp_path):
    run = train(tiny_config(train={"epochs": 1}, tracking=OFFLINE))
    assert [path for path in (run.wandb / "data").rglob("*") if path.is_file()]  # the table of examples, staged
    assert not list((tmp_path / "home").rglob("*"))
    assert not [name for name in os.environ if name.startswith("WANDB_") and name.endswith("_DIR")]


def test_two_runs_of_one_name_have_two_ids(tiny_config, tmp_path):
    ids = []
    for user in ("ann", "bob"):
        run = train(
            tiny_config(run={"name": "same", "dir": str(tmp_path / user)}, train={"epochs": 1}, tracking=OFFLINE)
        )
        (file,) = segments(run)
        (begun,) = (record.run for record in file.records if record.HasField("run"))
        assert begun.display_name == "same"
        assert begun.run_id == run.wandb_id.read_text()
        ids.append(begun.run_id)
    assert len(set(ids)) == 2


def test_a_run_whose_id_was_its_name_goes_on_with_it(tiny_config):
    config = tiny_config("older", train={"stop_after_epochs": 1}, tracking=OFFLINE)
    run = set_up(config, resume=False)
    run.wandb.mkdir()
    run.wandb_id.write_text("older")
    train(config, resume=True)
    run.wandb_id.unlink()  # as older versions left it
    train(tiny_config("older", tracking=OFFLINE), resume=True)
    assert_whole(run.root)
    assert [file.file.name for file in segments(run)] == ["run-older.wandb"] * 2


def test_stopped_and_resumed_the_second_file_goes_on_where_the_first_ended(tiny_config):
    config = tiny_config(train={"stop_after_epochs": 1.25, "log_every": 1}, tracking=OFFLINE)
    run = train(config)
    assert [exit_code for exit_code, _ in assert_whole(run.root)] == [1]
    train(tiny_config(train={"log_every": 1}, tracking=OFFLINE), resume=True)
    (first_exit, first), (second_exit, second) = assert_whole(run.root)
    assert (first_exit, second_exit) == (1, 0)
    assert second[0] == first[-1] + 1


KILLED = """
import json, os, signal, sys
import torch
from distributed.config import validate
from distributed.loop import Training
from distributed.world import World
training = Training(validate(json.loads(sys.argv[1])), World.join(torch.device("cpu")), lambda _: None)
update = training.strategy.update
def killing(factor):
    if training.progress.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(factor)
training.strategy.update = killing
training.run()
"""


@pytest.mark.parametrize("end", ["resume", "sync"])
def test_killed_at_once_nothing_is_lost(tiny_config, end):
    config = tiny_config(train={"log_every": 1}, tracking=OFFLINE)
    run = set_up(config, resume=False)
    command = [sys.executable, "-c", KILLED, config.model_dump_json()]
    # Lest this machine be so slow that wandb's file is written in between, which happens every 15 s.
    environment = os.environ | {"WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0"}
    assert subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=False).returncode == -9
    (torn,) = run.wandb.glob("offline-run-*/*.wandb")
    assert torn.stat().st_size == 7  # nothing but wandb's header
    assert [row["step"] for row in run.history()] == [1, 2, 3, 4, 5, 5, 6, 7]
    if end == "sync":
        sync(run)
        ((exit_code, _),) = assert_whole(run.root)
        assert exit_code == 1
    train(config, resume=True)
    assert assert_whole(run.root)[-1][0] == 0
    assert run.history()[-1].keys() >= {"test/rsum"}


@pytest.mark.parametrize("where", ["in a record", "between records", "damaged", "in the header"])
def test_a_torn_file_is_completed_once(finished, tmp_path, where, capsys):
    run = copy(finished, tmp_path / "run")
    (torn,) = segments(run)
    data = torn.file.read_bytes()
    if where == "damaged":
        torn.file.write_bytes(data[:50_000] + bytes([data[50_000] ^ 1]) + data[50_001:])
    else:
        # wandb's buffer: two blocks of three, say, or a byte before them.
        torn.file.write_bytes(data[: {"in a record": 65_536, "between records": 7, "in the header": 3}[where]])
    kept = sum(len(file.rows) for file in segments(run))
    assert (kept > 5) == (where in ("in a record", "damaged"))
    app(["sync", str(run.root)], result_action="return_value")
    assert f"{len(run.history()) - kept} row(s) added" in capsys.readouterr().out
    files = assert_whole(run.root)
    assert [len(steps) for _, steps in files] == [rows for rows in (kept, len(run.history()) - kept) if rows]
    assert files[-1][0] == 0  # it has its summary
    before = {file.file: file.file.read_bytes() for file in segments(run)}
    app(["sync", str(run.root)], result_action="return_value")
    assert ": 0 row(s) added" in capsys.readouterr().out
    assert {file.file: file.file.read_bytes() for file in segments(run)} == before


@pytest.mark.parametrize("sent", ["no", "by hand", "online"])
def test_steps_done_again_are_in_wandb_once(tiny_config, server, sent):
    tracking = {"wandb": "online" if sent == "online" else "offline", "examples": 0}
    run = train(tiny_config(train={"stop_after_epochs": 1.5, "log_every": 1}, tracking=tracking))
    if sent == "by hand":
        sync(run, upload=True)
    name, before = run.wandb_id.read_text(), run.history()
    assert [row["step"] for row in before] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    # The last checkpoint is lost: the run goes on from the one of the first epoch's end.
    (run.checkpoints / "last").unlink()
    (run.checkpoints / "last").symlink_to((run.checkpoints / "best").readlink())
    train(tiny_config(train={"log_every": 1}, tracking=tracking), resume=True)
    if sent == "no":
        assert [len(steps) for _, steps in assert_whole(run.root)] == [6, len(run.history()) - 6]
        return
    sync(run, upload=True)
    rows = run.history()
    told = [row for row in server.rows(name) if "step" in row]
    assert [row["_step"] for row in told] == list(range(len(rows)))
    # What was sent first stays; the steps have the same losses the second time.
    assert [row["train/seconds"] for row in told[6:9]] == [row["train/seconds"] for row in before[6:9]]
    assert [row["train/seconds"] for row in told[6:9]] != [row["train/seconds"] for row in rows[6:9]]
    assert [row.get("train/loss") for row in told] == [row.get("train/loss") for row in rows]


def test_uploaded_files_arrive_once(finished, tmp_path, server, capsys):
    run = copy(finished, tmp_path / "run")
    (torn,) = segments(run)
    torn.file.write_bytes(torn.file.read_bytes()[:65_536])
    for expected in ("2 file(s) sent", "0 file(s) sent"):
        app(["sync", str(run.root), "--upload"], result_action="return_value")
        assert expected in capsys.readouterr().out
    ((name, kept),) = server.runs.items()
    assert name == run.wandb_id.read_text()
    assert kept["name"] == "run"
    assert kept["exit_code"] == 0
    assert server.rows(name) == [row | {"_step": step} for step, row in enumerate(run.history())]


@pytest.mark.parametrize("lost", ["silent", "refusing"])
def test_a_server_lost_in_training_stops_nothing(tiny_config, server, monkeypatch, lost):
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT", 1.0)
    config = tiny_config(train={"log_every": 1}, tracking={"wandb": "online", "examples": 0})
    run = set_up(config, resume=False)
    training = Training(config, World.join(torch.device("cpu")), lambda _: None)
    update = training.strategy.update

    def losing(factor):
        if training.progress.step == 7:
            server.status = 503 if lost == "refusing" else 200
            if lost == "silent":
                server.answers.clear()
        return update(factor)

    training.strategy.update = losing
    started = time.monotonic()
    assert complete(training) is not None
    assert time.monotonic() - started < 30
    name = run.wandb_id.read_text()
    assert len(server.rows(name)) < len(run.history())
    note = run.tracking_note.read_text()
    assert note.endswith(f"`python -m distributed.tracking sync {run.root}` sends what it lacks")
    server.status = 200
    server.answers.set()
    assert int(sync(run).split()[0]) > 0
    assert server.rows(name) == [row | {"_step": step} for step, row in enumerate(run.history())]
    assert sync(run) == "0 row(s) sent"
    assert not run.tracking_note.exists()


def test_a_run_that_is_stopped_does_not_wait_for_a_silent_server(tiny_config, server, monkeypatch):
    monkeypatch.setattr(wandb_run, "STOP_TIMEOUT", 0.5)
    config = tiny_config(train={"log_every": 1}, tracking={"wandb": "online"})
    run = set_up(config, resume=False)
    training = Training(
        config, World.join(torch.device("cpu")), lambda _: None, stop_asked=lambda: training.progress.step == 3
    )
    server.answers.clear()
    started = time.monotonic()
    assert complete(training) is None
    assert time.monotonic() - started < wandb_run.FINISH_TIMEOUT / 2
    assert "did not take the rest within 0.5 s" in run.tracking_note.read_text()
    assert [row["step"] for row in run.history()] == [1, 2, 3]


def test_a_server_gone_before_a_restart_leaves_the_run_offline(tiny_config, server, monkeypatch):
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT", 1.0)
    tracking = {"wandb": "online", "examples": 0}
    run = train(tiny_config(train={"stop_after_epochs": 1}, tracking=tracking))
    server.status = 503
    train(tiny_config(tracking=tracking), resume=True)
    assert [file.online for file in segments(run) if file.rows] == [True, False]
    assert "recorded offline from here" in run.tracking_note.read_text()
    server.status = 200
    sync(run)
    assert server.rows(run.wandb_id.read_text()) == [row | {"_step": step} for step, row in enumerate(run.history())]
    assert all(file.sent for file in segments(run))


@pytest.fixture
def unanswered():
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("refuses", r"127\.0\.0\.1:\d+ does not answer \(.*refused"),
        ("never answers", r"127\.0\.0\.1:\d+ does not answer within 0\.5 s|does not answer \(timed out\)"),
        ("wrong key", r"refuses the API key in WANDB_API_KEY: `wandb login --relogin`"),
        ("unknown key", r"refuses the API key in WANDB_API_KEY"),
        ("short key", r"WANDB_API_KEY: API key must have 40\+ characters, has 3"),
        ("no key", r"there is no API key for 127\.0\.0\.1:\d+: `wandb login`, or export WANDB_API_KEY"),
        ("another server", r"127\.0\.0\.1:\d+ answers, but not as W&B's server does"),
        ("broken server", r"127\.0\.0\.1:\d+ answers 502"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_before_anything_starts(  # noqa: PLR0917
    trouble,
    message,
    server,
    unanswered,
    tiny_config,
    monkeypatch,
):
    assert tracking_server.TIMEOUT < 20
    monkeypatch.setattr(tracking_server, "TIMEOUT", 0.5)
    if trouble == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    elif trouble == "never answers":
        monkeypatch.setenv("WANDB_BASE_URL", unanswered)
    elif trouble == "wrong key":
        server.status = 401
    elif trouble == "unknown key":
        server.viewer = None
    elif trouble == "short key":
        monkeypatch.setenv("WANDB_API_KEY", "abc")
    elif trouble == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    elif trouble == "another server":
        monkeypatch.setattr(server, "answer", lambda path, body: {"hello": "world"})
    elif trouble == "broken server":
        server.status = 502
    config = tiny_config(tracking={"wandb": "online"})
    with pytest.raises(UserError, match=rf"tracking\.wandb=online: .*{message}.*tracking\.on_failure=offline"):
        settle(config)
    said = []
    tolerant = tiny_config(tracking={"wandb": "online", "on_failure": "offline"})
    assert settle(tolerant, said.append).tracking.wandb == "offline"
    (line,) = said
    assert re.search(message, line)
    assert f"`python -m distributed.tracking sync {config.run_dir} --upload` sends it" in line
    settle(tolerant, said.append, runs="searches/x/trials/*")
    assert "sync searches/x/trials/* --upload`" in said[1]


def test_a_server_that_answers_lets_the_run_stream(server, tiny_config):
    config = tiny_config(tracking={"wandb": "online"})
    assert settle(config) is config


def test_train_ends_before_ray_starts(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(tracking={"wandb": "online"})
    (tmp_path / "run.json").write_text(config.model_dump_json())
    monkeypatch.setattr("distributed.train.cluster", None)  # would fail if it were called
    with pytest.raises(UserError, match=r"tracking\.wandb=online: there is no API key"):
        train_app(["--config", str(tmp_path / "run.json")], exit_on_error=False, result_action="return_value")
    assert not config.run_dir.exists()


def test_what_cannot_be_synced_is_refused(finished, tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml' in"):
        sync(RunDirectory(tmp_path))
    run = copy(finished, tmp_path / "run")
    run.heartbeats.mkdir()
    run.heartbeat(0).write_text("{}")
    with pytest.raises(UserError, match=r"is training; accepted is a run that has ended"):
        sync(run)
    untracked = set_up(tiny_config("untracked"), resume=False)
    with pytest.raises(UserError, match=r"has tracking\.wandb=disabled; accepted: --upload"):
        sync(untracked)
