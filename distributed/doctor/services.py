"""The services a run reaches: Ray's token and cluster, Weights & Biases."""

import json
import netrc
import os
import socket
import stat
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from distributed.doctor.finding import Finding

_TIMEOUT_S = 3.0


def token_source() -> str | None:
    """Where Ray would read its token, in Ray's order of precedence (the value is never returned); None without one.

    A path that is set but holds nothing ends the search, as it does in Ray: the message then begins with ``unusable``.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        filled = bool(path.read_text().strip())
    except OSError:
        filled = False
    if filled:
        return str(path)
    return f"unusable RAY_AUTH_TOKEN_PATH {named}" if named else None


def check_authentication() -> Finding:
    """Token authentication is on for both sides, and there is a token only its owner can read."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    source = token_source()
    remote = _address() is not None
    found = f"mode {mode or 'unset'}; " + (f"token in {source}" if source else "no token")
    if source and source.startswith("unusable"):
        return Finding("ray token", "problem", found, "point it at a readable file that holds the token")
    if mode.lower() == "disabled":
        remedy = "export RAY_AUTH_MODE=token: without it whoever reaches the cluster runs code on it"
        return Finding("ray token", "warning", found, remedy)
    if mode.lower() == "token" and source is None and remote:
        return Finding("ray token", "problem", found, "copy the cluster's token to ~/.ray/auth_token")
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


def check_cluster() -> Finding:
    """The cluster address in the environment answers within three seconds, with the Ray version installed here."""
    named = _address()
    if named is None:
        return Finding("ray cluster", "ok", "no address set: runs start a local Ray")
    variable, address = named
    where = f"{variable}={_without_credentials(address)}"
    if address.startswith(("http://", "https://")):
        return _ask_dashboard(where, address)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return Finding("ray cluster", "problem", f"{where} is no address", f"{variable}=HOST:PORT, or http://HOST:8265")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except OSError as error:
        remedy = f"start the cluster, or unset {variable}"
        return Finding("ray cluster", "problem", f"{where} does not answer: {error}", remedy)
    return Finding("ray cluster", "ok", f"{where} answers")


def _ask_dashboard(where: str, address: str) -> Finding:
    import ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    request = Request(f"{address.rstrip('/')}/api/version", headers=get_auth_headers_if_auth_enabled({}))
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            theirs = json.load(answer)["ray_version"]
    except HTTPError as error:
        if error.code in (401, 403):
            remedy = "export RAY_AUTH_MODE=token and copy the cluster's token to ~/.ray/auth_token"
            return Finding("ray cluster", "problem", f"{where} refuses this token ({error.code})", remedy)
        return Finding("ray cluster", "problem", f"{where} answers {error.code}", "is this Ray's dashboard?")
    except (OSError, ValueError, KeyError) as error:
        remedy = "start the cluster, forward its port 8265, or unset the address"
        return Finding("ray cluster", "problem", f"{where} does not answer as Ray does: {error}", remedy)
    if theirs != ray.__version__:
        remedy = f"pip install 'ray[default,train,tune]=={theirs}'"
        return Finding("ray cluster", "warning", f"{where} runs Ray {theirs}, here is {ray.__version__}", remedy)
    return Finding("ray cluster", "ok", f"{where} answers, Ray {theirs}")


def _address() -> tuple[str, str] | None:
    """Variable and value of the cluster address, or None where Ray would start a cluster of its own."""
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        value = os.environ.get(variable)
        if value and value not in ("local", "auto"):
            return variable, value
    return None


def _without_credentials(address: str) -> str:
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]).geturl()


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
