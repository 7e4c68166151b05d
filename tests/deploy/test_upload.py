"""What a job uploads, by Ray's own packaging code: the code, and none of the data, runs, environments or secrets."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

from allpairs.command import run
from allpairs.errors import UserError
from deploy.submit import Upload, app
from distributed.doctor.finding import Finding

ROOT = Path(__file__).resolve().parents[2]
CODE = ("allpairs", "retrieval_eval", "distributed", "tune", "deploy", "configs")
JUNK = (
    "data/emoji/train/shard-000000.tar",
    "runs/emoji/checkpoints/best/model.safetensors",
    "runs/emoji/embeddings/queries.npy",
    "wandb/offline-run/run.wandb",
    ".git/objects/pack/pack.pack",
    ".venv/lib/python3.11/site-packages/torch/lib/libtorch.so",
    "venv/bin/python",
    ".mypy_cache/3.11/cache.json",
    "distributed/data/__pycache__/reader.cpython-311.pyc",
    "allpairs.egg-info/PKG-INFO",
    ".env",
    ".netrc",
    "deploy/auth_token",
    "tune/.hypothesis/examples/1",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout's code, with all that gathers in one that is used."""
    copy = tmp_path / "checkout"
    for name in CODE:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    for name in JUNK:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"x" * 1_000_000)
    return copy


def package(checkout: Path, excludes: list[str], *, include_gitignore: bool) -> dict[str, int]:
    """Names and sizes in the zip Ray would upload."""
    target = checkout.parent / "package.zip"
    create_package(str(checkout), target, include_gitignore=include_gitignore, excludes=excludes)
    with ZipFile(target) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_upload_is_the_code_alone(checkout: Path, include_gitignore: bool) -> None:
    uploaded = package(checkout, [], include_gitignore=include_gitignore)  # without Ray's default excludes too
    assert not set(JUNK) & set(uploaded)
    expected = {
        str(path.relative_to(ROOT))
        for name in CODE
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= set(uploaded)
    assert sum(uploaded.values()) < 10 * 2**20


def test_folders_are_skipped_without_walking_them(checkout: Path) -> None:
    (checkout / "data" / "empty").mkdir()  # Ray uploads empty folders it walks into
    (checkout / "runs" / "empty").mkdir()
    uploaded = package(checkout, [], include_gitignore=False)
    assert not [name for name in uploaded if name.startswith(("data", "runs"))]


def test_runtime_environment_leaves_tests_behind(checkout: Path) -> None:
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_x.py").write_text("")
    excludes = yaml.safe_load((ROOT / "deploy" / "runtime-env.yaml").read_text())["excludes"]
    assert "tests/test_x.py" in package(checkout, [], include_gitignore=True)
    (checkout.parent / "package.zip").unlink()
    assert "tests/test_x.py" not in package(checkout, excludes, include_gitignore=True)


def test_the_upload_is_told_as_ray_packs_it(checkout: Path) -> None:
    (checkout / "tests").mkdir()
    (checkout / "tests/weights.bin").write_bytes(bytes(3_000_000))
    (checkout / "configs/embeddings.bin").write_bytes(bytes(2_000_000))
    upload = Upload.of(checkout, ["/tests"])
    assert upload.sizes == package(checkout, ["/tests"], include_gitignore=True)
    lines = upload.describe()
    assert lines[0].startswith(f"upload   {len(upload.sizes)} files, ")
    assert lines[1].split() == ["2.0", "MB", "configs/embeddings.bin"]
    assert len(lines) == 1 + 5 + 1
    assert lines[-1].startswith("warning  configs/embeddings.bin (2.0 MB) is no text")
    assert upload.keys == {}
    upload.refuse_keys()


PEM = "-----BEGIN {} KEY-----"  # in pieces: this file is uploaded too


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("deploy/cluster.pem", PEM.format("RSA PRIVATE"), "holds a private key"),
        ("configs/notes.txt", "use hf_" + "a" * 30, "holds an access token"),
        ("configs/.env.production", "x=1", "its name is that of a secret"),
        ("tune/id_ed25519", "x", "its name is that of a secret"),
        ("configs/service-account-eu.json", "{}", "its name is that of a secret"),
    ],
)
def test_a_key_is_named_and_not_uploaded(checkout: Path, name: str, text: str, why: str) -> None:
    (checkout / "deploy/public.pem").write_text(PEM.format("PUBLIC"))
    (checkout / name).write_text(text)
    upload = Upload.of(checkout, [])
    assert upload.keys == {name: why}
    with pytest.raises(UserError, match=re.escape(f"not submitted: {name} ({why}) would be uploaded")):
        upload.refuse_keys()


def submit(*words: str) -> tuple[int, list[list[str]]]:
    """Run the command; return its exit code and the commands it would have run."""
    calls: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "call", lambda command, cwd: calls.append([*command, str(cwd)]) or 7)
        patch.setattr("deploy.submit.ask_dashboard", lambda where, address: ANSWERS[address])
        patch.setattr("deploy.submit.source_commit", lambda: ("a" * 40, True))
        patch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
        with pytest.raises(SystemExit) as ended:
            run(app, words)
    return ended.value.code, calls


ANSWERS = {
    "http://127.0.0.1:8265": Finding("ray cluster", "ok", "answers"),
    "http://gone:1": Finding("ray cluster", "problem", "http://gone:1 does not answer", "start it"),
}


def test_a_job_is_submitted_with_its_commit_and_ends_as_ray_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, (command,) = submit("--submission-id", "mine", "--no-wait", "--", "python", "-m", "x", "--resume", "k=v")
    assert code == 7
    assert command[1:5] == ["-m", "ray.scripts.scripts", "job", "submit"]
    assert command[command.index("--") + 1 :] == ["python", "-m", "x", "--resume", "k=v", str(ROOT)]
    options = command[5 : command.index("--")]
    environment = json.loads(options[options.index("--runtime-env-json") + 1])
    assert environment["env_vars"]["ALLPAIRS_COMMIT"] == f"{'a' * 40}-dirty"
    declared = yaml.safe_load((ROOT / "deploy/runtime-env.yaml").read_text())
    assert environment["env_vars"].items() > declared["env_vars"].items()
    assert environment["excludes"] == declared["excludes"]
    assert options[:4] == ["--address", "http://127.0.0.1:8265", "--submission-id", "mine"]
    assert "--no-wait" in options
    told = capsys.readouterr().out
    assert re.match(r"upload   \d+ files, [\d.]+ MB, packed [\d.]+ MB\n", told)
    assert f"commit   {'a' * 40} with local changes" in told


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--address", "http://gone:1", "--", "python"), 2, "not submitted: http://gone:1 does not answer; start it"),
        ((), 2, "no command: give it after --"),
        (("--dry-run",), 0, ""),
    ],
)
def test_what_is_not_submitted(capsys: pytest.CaptureFixture[str], words, code, message) -> None:
    assert submit(*words) == (code, [])
    assert message in capsys.readouterr().err
