"""What the environment says of services: the cluster's address and token, W&B's key. No secret is ever shown."""

import netrc
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from allpairs.errors import UserError
from distributed.doctor.finding import Finding

if TYPE_CHECKING:
    from distributed.config import Config


def cluster_address() -> tuple[str, str] | None:
    """Variable and value of the cluster address, or None where Ray would start a cluster of its own."""
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        value = os.environ.get(variable)
        if value and value not in ("local", "auto"):
            return variable, value
    return None


def token_source() -> str | None:
    """Where Ray would read its token, in Ray's order of precedence (the value is never returned); None without one.

    A path that is set but holds nothing ends the search, as it does in Ray: the message then begins with ``unusable``.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path, token = _token_file()
    if token:
        return str(path)
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"unusable RAY_AUTH_TOKEN_PATH {named}" if named else None


def token_remedy() -> str:
    """What to do where a cluster refuses the token that Ray sends."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "export RAY_AUTH_MODE=token and copy the cluster's token to ~/.ray/auth_token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        path, token = _token_file()
        instead = f"unset it to use {path}" if token else "unset it and copy the cluster's token to ~/.ray/auth_token"
        return f"RAY_AUTH_TOKEN goes before any file: set it to the cluster's token, or {instead}"
    return f"copy the cluster's token to {_token_file()[0]}"


def _token_file() -> tuple[Path, str]:
    """Return the file that Ray would read where RAY_AUTH_TOKEN is not set, and what it holds."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        return path, path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return path, ""


def check_authentication() -> Finding:
    """Token authentication is on for both sides, and there is a token only its owner can read."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    source = token_source()
    remote = cluster_address() is not None
    found = f"mode {mode or 'unset'}; " + (f"token in {source}" if source else "no token")
    if source == "RAY_AUTH_TOKEN":
        path, token = _token_file()
        if token and token != os.environ["RAY_AUTH_TOKEN"].strip():
            found += f", which goes before the other one in {path}"
    if source and source.startswith("unusable"):
        return Finding("ray token", "problem", found, "point it at a readable file that holds the token")
    if mode.lower() == "disabled":
        remedy = "export RAY_AUTH_MODE=token: without it whoever reaches the cluster runs code on it"
        return Finding("ray token", "warning", found, remedy)
    if mode.lower() == "token" and source is None and remote:
        return Finding("ray token", "problem", found, token_remedy())
    if source and source != "RAY_AUTH_TOKEN" and _open_to_others(Path(source)):
        return Finding("ray token", "warning", f"{found}, which others can read", f"chmod 600 {source}")
    if not mode and remote:
        return Finding("ray token", "warning", found, "export RAY_AUTH_MODE=token on the cluster and here")
    if source is None:
        found += " (Ray writes one when it starts a local cluster)"
    return Finding("ray token", "ok", found)


def _open_to_others(path: Path) -> bool:
    """Whether another user may read `path`: its own mode says so, and so does every folder above it."""
    path = path.resolve()
    readable = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    return bool(readable) and all(above.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for above in path.parents)


def check_wandb(config: "Config | None" = None) -> Finding:
    """Where the API key lies (never its value), and, unless runs stay offline, whether the server answers.

    A `config` says what its run does; else WANDB_MODE does.
    """
    mode = os.environ.get("WANDB_MODE", "") if config is None else config.tracking.wandb
    said = f"WANDB_MODE={mode}" if config is None else f"tracking.wandb={mode}"
    source = _key_source()
    if mode == "online":
        from distributed.tracking.server import ask

        try:
            ask()
        except UserError as error:
            offline = "export WANDB_MODE=offline" if config is None else "tracking.wandb=offline"
            return Finding("wandb", "problem", f"{said}: {error}", f"mend that, or {offline}")
        return Finding(
            "wandb", "ok", f"{said}: the server answers and takes the key{f' in {source}' if source else ''}"
        )
    if mode in ("offline", "disabled", "dryrun"):
        return Finding("wandb", "ok", f"{said}: nothing is uploaded")
    if source:
        return Finding("wandb", "ok", f"API key in {source}")
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
