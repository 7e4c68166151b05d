"""Submit a job from this checkout: `python -m deploy.submit [--address URL] -- python -m distributed.train ...`.

It is `ray job submit --working-dir .` with `deploy/runtime-env.yaml`, and three things that Ray's command leaves out:
what is uploaded is said first, keys and tokens among it are refused, and the job learns the commit it was uploaded
from (an upload has no .git).
"""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml
from cyclopts import App

from allpairs.command import run
from allpairs.errors import UserError
from distributed.doctor.cluster import ask_dashboard
from distributed.provenance import COMMIT_VARIABLE, ROOT, source_commit
from distributed.tracking.redact import KNOWN_TOKEN

app = App(name="python -m deploy.submit", help=__doc__, version_flags=[])

LARGEST = 5
"""So many files are listed."""

LARGE_BINARY = 2**20
"""Bytes from which a file that is no text is named: code has no use for it."""

_KEY_NAME = re.compile(
    r"\.env(\..+)?|[._]netrc|\.pypirc|\.npmrc|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519)|auth_token|kubeconfig"
    r"|credentials(\.json)?|service[-_]account.*\.json|.+\.(key|p12|pfx|keystore|jks)"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_LOOKED_AT = 2**20


@app.default
def submit(
    *command: str,
    address: str | None = None,
    submission_id: str | None = None,
    wait: bool = True,
    dry_run: bool = False,
) -> int:
    """Say what is uploaded, then submit the job and follow its log; exit code 1 when it fails.

    Parameters
    ----------
    command
        What the job runs, after `--`.
    address
        The cluster's dashboard; without it what RAY_API_SERVER_ADDRESS says, else http://127.0.0.1:8265.
    submission_id
        Name of the job, for `ray job stop` and `ray job logs`.
    wait
        Follow the log until the job ends.
    dry_run
        Only say what would be uploaded.
    """
    if not command and not dry_run:
        raise UserError("no command: give it after --, e.g. -- python -m distributed.train --config configs/emoji.yaml")
    environment: dict[str, Any] = yaml.safe_load((ROOT / "deploy/runtime-env.yaml").read_text(encoding="utf-8"))
    upload = Upload.of(ROOT, environment.get("excludes", []))
    commit, dirty = source_commit()
    for line in upload.describe():
        print(line)
    print(f"commit   {commit or 'unknown'}{' with local changes' if dirty else ''}", flush=True)
    upload.refuse_keys()
    if dry_run:
        return 0
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    answer = ask_dashboard(address, address)
    if answer.status == "problem":
        raise UserError(f"not submitted: {answer.found}; {answer.remedy}")
    if commit is not None:
        environment["env_vars"][COMMIT_VARIABLE] = f"{commit}-dirty" if dirty else commit
    options = ["--address", address]
    options += ["--submission-id", submission_id] if submission_id else []
    options += [] if wait else ["--no-wait"]
    options += ["--runtime-env-json", json.dumps(environment), "--working-dir", "."]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    return subprocess.call([*ray, *options, "--", *command], cwd=ROOT)


@dataclass(frozen=True)
class Upload:
    """What Ray packs for a job."""

    sizes: dict[str, int]
    """Bytes of each file."""
    packed: int
    """Bytes that travel."""
    binaries: list[str]
    """Large files that are no text."""
    keys: dict[str, str]
    """Files that look like a secret, and why."""

    @classmethod
    def of(cls, root: Path, excludes: list[str]) -> "Upload":
        """Pack `root` as Ray does: `excludes`, .gitignore and .rayignore are left out."""
        from ray._private.ray_constants import get_runtime_env_default_excludes
        from ray._private.runtime_env.packaging import create_package

        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "upload.zip"
            quiet = logging.getLogger(__name__)
            everything_left_out = [*get_runtime_env_default_excludes(), *excludes]
            create_package(str(root), package, include_gitignore=True, excludes=everything_left_out, logger=quiet)
            with ZipFile(package) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                sizes = {entry.filename: entry.file_size for entry in entries}
                binaries, keys = [], {}
                for entry in entries:
                    with archive.open(entry) as file:
                        beginning = file.read(_LOOKED_AT)
                    if b"\0" in beginning and entry.file_size >= LARGE_BINARY:
                        binaries.append(entry.filename)
                    why = _looks_like_a_secret(Path(entry.filename).name, beginning.decode(errors="replace"))
                    if why:
                        keys[entry.filename] = why
            return cls(sizes, package.stat().st_size, binaries, keys)

    def describe(self) -> list[str]:
        """Say how much is uploaded, the largest files, and large ones that are no text."""
        lines = [f"upload   {len(self.sizes)} files, {_size(sum(self.sizes.values()))}, packed {_size(self.packed)}"]
        largest = sorted(self.sizes, key=lambda name: -self.sizes[name])[:LARGEST]
        lines += [f"         {_size(self.sizes[name]):>8}  {name}" for name in largest]
        return lines + [
            f"warning  {name} ({_size(self.sizes[name])}) is no text: unless the job needs it, name it in .rayignore"
            for name in self.binaries
        ]

    def refuse_keys(self) -> None:
        """Raise UserError where a secret would be uploaded: the cluster keeps it, and shows it to whoever may look."""
        if self.keys:
            found = ", ".join(f"{name} ({why})" for name, why in self.keys.items())
            raise UserError(f"not submitted: {found} would be uploaded; remove it, or name it in .rayignore")


def _looks_like_a_secret(name: str, text: str) -> str | None:
    if _KEY_NAME.fullmatch(name):
        return "its name is that of a secret"
    if _PRIVATE_KEY.search(text):
        return "holds a private key"
    return "holds an access token" if KNOWN_TOKEN.search(text) else None


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


if __name__ == "__main__":
    run(app)
