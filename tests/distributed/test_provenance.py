"""What is written about a run: its commit or "unknown", no secret, and files that others may read as the umask says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.provenance import COMMIT_FILE, COMMIT_VARIABLE, provenance, source_commit
from distributed.run_directory import RunDirectory
from distributed.tracking.redact import REDACTED
from distributed.world import World
from tests.distributed.wandb_files import wandb_records

ROOT = Path(__file__).parents[2]
SECRET = "b6d1c2f0a9e84775b1c2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The code as an upload brings it: no .git, inside another project's repository, and nothing noted."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    root = tmp_path / "copy"
    (root / "distributed").mkdir(parents=True)
    shutil.copy(ROOT / "distributed/provenance.py", root / "distributed")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "another project")
    return root


def test_a_checkout_says_its_commit_and_whether_it_has_changes(copy: Path) -> None:
    git(copy, "init", "--quiet")
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "-m", "ours")
    assert source_commit(copy) == (git(copy, "rev-parse", "HEAD"), False)
    (copy / "new.py").write_text("")
    assert source_commit(copy) == (git(copy, "rev-parse", "HEAD"), True)


def test_a_copy_without_git_is_unknown_and_never_clean(copy: Path) -> None:
    assert source_commit(copy) == (None, None)


@pytest.mark.parametrize(
    ("noted", "expected"),
    [(COMMIT, (COMMIT, False)), (f"{COMMIT}-dirty\n", (COMMIT, True)), ("v1.0", (None, None)), ("", (None, None))],
)
def test_a_job_and_an_image_say_what_was_noted(copy: Path, monkeypatch: pytest.MonkeyPatch, noted, expected) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, noted)
    assert source_commit(copy) == expected
    monkeypatch.setenv(COMMIT_VARIABLE, "f" * 40)
    (copy / COMMIT_FILE).write_text(noted)
    assert source_commit(copy) == expected


def test_a_report_of_unknown_code_says_so_and_tags_tell_no_secret(tiny_config, monkeypatch) -> None:
    monkeypatch.setattr("distributed.provenance.source_commit", lambda: (None, None))
    token = "hf_" + "a" * 20
    tracking = {"wandb": "offline", "tags": ["mine", token]}
    config = tiny_config("unknown", train={"epochs": 1, "global_batch": 22}, tracking=tracking)
    run = set_up(config, resume=False)
    assert complete(Training(config, World.join(torch.device("cpu")), lambda _: None)) is not None
    written = json.loads(run.provenance.read_text())
    assert (written["git_commit"], written["git_dirty"]) == (None, None)
    page = run.report.read_text()
    assert "unknown" in page
    assert "with local changes" not in page
    records = [record for file in run.root.glob("wandb/*run-*/*.wandb") for record in wandb_records(file)]
    tags = [list(record.run.tags) for record in records if record.HasField("run")]
    assert tags
    assert all(told == ["mine", REDACTED] for told in tags)
    assert token not in str(records)


def test_a_run_that_goes_on_keeps_what_it_began_with_and_notes_each_session(tiny_config, monkeypatch) -> None:
    def went_on(commit: str, **train) -> dict:
        monkeypatch.setattr("distributed.provenance.source_commit", lambda: (commit, False))
        config = tiny_config(train={"epochs": 2, "global_batch": 22, **train})
        run = set_up(config, resume="auto")
        complete(Training(config, World.join(torch.device("cpu")), lambda _: None))
        return json.loads(run.provenance.read_text())

    first = went_on("a" * 40, stop_after_epochs=0.4)
    went_on("a" * 40, stop_after_epochs=1)
    last = went_on("b" * 40)
    resumed = last.pop("resumed")
    assert last == first
    assert [session["git_commit"][0] for session in resumed] == ["a", "b"]
    assert all(session.keys() == first.keys() - {"data"} for session in resumed)
    page = RunDirectory(tiny_config().run_dir).report.read_text()
    assert f"{'a' * 40}, then {'b' * 40}" in page


def test_a_command_line_tells_no_secret(tiny_config, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "train.py", f"WANDB_API_KEY={SECRET}", "--token", SECRET, f"--api-key={SECRET}", "train.epochs=3",
        f"model={{image: {{hub_token: {SECRET}, width: 8}}}}", f"data.root=https://me:{SECRET}@host/x",
        "--config", "a.yaml",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    written = provenance(tiny_config("secret"))
    assert SECRET not in json.dumps(written)
    assert written["command"][5:7] == ["train.epochs=3", "model={image: {hub_token: [redacted], width: 8}}"]
    assert written["command"][-2:] == ["--config", "a.yaml"]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_of_a_run_follows_the_umask(tiny_config, umask: int) -> None:
    config = tiny_config("shared", train={"epochs": 1, "global_batch": 22}, tracking={"wandb": "disabled"})
    before = os.umask(umask)
    try:
        run = set_up(config, resume=False)
        assert complete(Training(config, World.join(torch.device("cpu")), lambda _: None)) is not None
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in run.root.rglob("*")}
    assert any(path.suffix == ".safetensors" for path in modes)
    expected = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in modes}
    assert modes == expected
