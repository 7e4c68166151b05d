"""What ran: versions, commit, machine and data, written beside the run so that its numbers can be traced."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from distributed.config import Config

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


def provenance(config: Config) -> dict[str, Any]:
    """Return versions, git commit, machine, command and the manifest hashes of the data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "data": {split: _manifest(config.data.folder(split)) for split in config.data.splits},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Ask git about this checkout; None where there is none (an image, an uploaded working directory)."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {"folder": str(folder)} | {key: value for key, value in manifest.items() if key != "shards"}
