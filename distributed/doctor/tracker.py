"""Weights & Biases: online with a key, or offline into the run directory."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from distributed.doctor.finding import Finding


def check_wandb() -> Finding:
    """Where the API key lies (never its value), or that runs stay offline."""
    mode = os.environ.get("WANDB_MODE", "")
    source = _key_source()
    if mode in ("offline", "disabled", "dryrun"):
        return Finding("wandb", "ok", f"WANDB_MODE={mode}: nothing is uploaded")
    if source:
        return Finding("wandb", "ok", f"API key in {source}")
    if mode:
        remedy = "wandb login, or export WANDB_MODE=offline"
        return Finding("wandb", "problem", f"WANDB_MODE={mode}, but no API key", remedy)
    return Finding("wandb", "ok", "no API key: runs are recorded offline (`wandb login` to upload them)")


def _key_source() -> str | None:
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    candidates = [Path(named).expanduser()] if named else [Path.home() / name for name in (".netrc", "_netrc")]
    for path in candidates:
        try:
            entry = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        # The `default` entry answers for every host and says nothing of W&B.
        if entry and entry[2] and host in netrc.netrc(str(path)).hosts:
            return f"{path} ({host})"
    return None
