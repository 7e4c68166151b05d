"""What a job uploads, by Ray's own packaging code: the code, and none of the data, runs, environments or secrets."""

import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

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
