"""What ran: versions, commit, machine and data, written beside the run so that its numbers can be traced."""

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from allpairs.files import read_json, write_text
from distributed.config import Config
from distributed.tracking.redact import redact

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = (
    "torch",
    "ray",
    "webdataset",
    "wandb",
    "deepspeed",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
)

COMMIT_VARIABLE = "ALLPAIRS_COMMIT"
"""Environment variable that tells a submitted job its commit: what it was uploaded from has a .git, the upload none."""

COMMIT_FILE = "COMMIT"
"""File beside the packages that tells an image its commit. Not a variable of the image: a job's upload has none."""


def note_session(file: Path, config: Config) -> None:
    """Write what runs now to `file`, a run's provenance; of a run that goes on, as one more of those under `resumed`.

    The data need no second note: those of a run that goes on are the ones it began with.
    """
    if file.exists():
        facts = read_json(file)
        facts["resumed"] = [*facts.get("resumed", []), session()]
    else:
        facts = provenance(config)
    write_text(file, json.dumps(facts, indent=1))


def provenance(config: Config) -> dict[str, Any]:
    """Return what `session` does and the manifest hashes of the data, without secrets."""
    data = redact({split: _manifest(config.data.folder(split)) for split in config.data.splits})
    return session() | {"data": data}


def session() -> dict[str, Any]:
    """Return time, command, machine, versions and git commit, without secrets.

    `git_commit` and `git_dirty` are null where nobody knows them.
    """
    commit, dirty = source_commit()
    facts = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": commit,
        "git_dirty": dirty,
    }
    redacted: dict[str, Any] = redact(facts)
    return redacted


def source_commit(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """Return the commit of the code at `root` and whether it has changes of its own; None for what nobody knows.

    Asked are git, where it tracks this code (another project's repository around it says nothing of it), then what was
    noted when the code left its checkout: `COMMIT_FILE` in an image, `COMMIT_VARIABLE` in a job. Both hold what
    ``git describe --always --dirty --abbrev=40 --exclude='*'`` says.
    """
    if _git(root, "ls-files", "--error-unmatch", "distributed/provenance.py") is not None:
        status = _git(root, "status", "--porcelain")
        return _git(root, "rev-parse", "HEAD"), None if status is None else bool(status)
    file = root / COMMIT_FILE
    noted = file.read_text(encoding="utf-8") if file.is_file() else os.environ.get(COMMIT_VARIABLE, "")
    match = re.fullmatch(r"([0-9a-f]{40,64})(-dirty)?", noted.strip())
    return (match[1], match[2] is not None) if match else (None, None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Ask git about a checkout; None where there is none (an image, an uploaded working directory)."""
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {"folder": str(folder)} | {key: value for key, value in manifest.items() if key != "shards"}
