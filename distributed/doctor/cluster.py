"""The cluster a run goes to: whether it answers and takes our token, has room, and shares the folders of the run."""

import json
import os
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from distributed.doctor.finding import Finding, ProbeError, ask
from distributed.doctor.services import cluster_address, token_remedy, token_source

if TYPE_CHECKING:
    from distributed.config import Config

TUNE_DRIVER = "tune_driver"
"""The resource of which each trial of a search holds one (`tune.runner`)."""

_ANSWER_S = 3.0
_NODE_S = 20.0
_PROBE_S = 90.0
_PROBE = Path(__file__).with_name("node_probe.py")


def check_cluster(config: "Config | None" = None) -> list[Finding]:
    """The cluster in the environment answers, takes the token, has room for `config`, and its nodes share its folders.

    Its nodes are asked from here where this machine is one of them (RAY_ADDRESS=HOST:PORT), else by a small job.
    """
    named = cluster_address()
    if named is None:
        return [Finding("ray cluster", "ok", "no address set: runs start a local Ray")]
    variable, value = named
    where = f"{variable}={_without_credentials(value)}"
    dashboard = value.startswith(("http://", "https://"))
    first = ask_dashboard(where, value) if dashboard else _connect(variable, where, value)
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and token_source() is None:
        return [first]  # Ray would abort; that there is no token has a row of its own
    relative = _relative_folders(config)
    if first.status != "ok" or relative:
        return [first, *relative]
    asked = {"address": "auto" if dashboard else value, "seconds": _NODE_S, **_folders(config)}
    try:
        found = json.loads(_ask_by_job(value, asked) if dashboard else ask(_PROBE.read_text(), json.dumps(asked)))
    except (ProbeError, RuntimeError, OSError, ValueError) as error:  # as Ray's client has it
        return [_refused(where, " ".join(str(error).split()))]
    return [first, *_judge_room(found, config), *(_judge_node(node, config) for node in found["nodes"])]


def ask_dashboard(where: str, address: str) -> Finding:
    """Whether Ray's dashboard answers at `address`, within three seconds, takes our token and has our version."""
    import ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    request = Request(f"{address.rstrip('/')}/api/version", headers=get_auth_headers_if_auth_enabled({}))
    try:
        with urlopen(request, timeout=_ANSWER_S) as answer:
            theirs = json.load(answer)["ray_version"]
    except HTTPError as error:
        if error.code in (401, 403):
            return Finding("ray cluster", "problem", f"{where} refuses this token ({error.code})", token_remedy())
        return Finding("ray cluster", "problem", f"{where} answers {error.code}", "is this Ray's dashboard?")
    except (OSError, ValueError, KeyError) as error:
        remedy = "start the cluster, forward its port 8265, or unset the address"
        return Finding("ray cluster", "problem", f"{where} does not answer as Ray does: {error}", remedy)
    if theirs != ray.__version__:
        remedy = f"pip install 'ray[default,train,tune]=={theirs}'"
        return Finding("ray cluster", "warning", f"{where} runs Ray {theirs}, here is {ray.__version__}", remedy)
    return Finding("ray cluster", "ok", f"{where} answers, Ray {theirs}")


def _connect(variable: str, where: str, address: str) -> Finding:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return Finding("ray cluster", "problem", f"{where} is no address", f"{variable}=HOST:PORT, or http://HOST:8265")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        remedy = f"start the cluster, or unset {variable}"
        return Finding("ray cluster", "problem", f"{where} does not answer: {error}", remedy)
    return Finding("ray cluster", "ok", f"{where} answers")


def _refused(where: str, reason: str) -> Finding:
    """What it means that a program of ours could not join the cluster."""
    if "uthenticat" in reason:
        return Finding("ray cluster", "problem", f"{where} refuses this token", token_remedy())
    remedy = "run the doctor on a node of it, or set RAY_API_SERVER_ADDRESS=http://HEAD:8265"
    text = f"{where} answers, but its nodes cannot be asked from here: {reason[:300]}"
    return Finding("ray cluster", "problem", text, remedy)


def _ask_by_job(address: str, asked: dict[str, Any]) -> str:
    """Run the probe as a job of the cluster and return the last line that it printed."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)
    job = client.submit_job(entrypoint=shlex.join(["python", "-c", _PROBE.read_text(), json.dumps(asked)]))
    deadline = time.monotonic() + _PROBE_S
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise ProbeError(f"no answer within {_PROBE_S:.0f} s")
        time.sleep(0.5)
    lines = client.get_job_logs(job).strip().splitlines() or [str(client.get_job_info(job).message)]
    client.delete_job(job)
    if status != JobStatus.SUCCEEDED:
        raise ProbeError(lines[-1])
    return lines[-1]


def _judge_room(found: dict[str, Any], config: "Config | None") -> list[Finding]:
    total = found["resources"]
    amounts = {name: int(total.get(name, 0)) for name in ("CPU", "GPU", TUNE_DRIVER)}
    told = ", ".join(f"{amount} {name}" for name, amount in amounts.items())
    rows = [Finding("ray room", "ok", f"{len(found['nodes'])} node(s): {told}")]
    if amounts[TUNE_DRIVER] < 1:
        remedy = f"for searches: ray start --head --resources='{{\"{TUNE_DRIVER}\": 8}}'"
        rows = [Finding("ray room", "warning", f"{rows[0].found}; no search can run", remedy)]
    if config is None:
        return rows
    cluster = config.cluster
    workers, key = cluster.workers, "workers"
    if cluster.min_workers is not None:
        workers, key = cluster.min_workers, "min_workers"
    cpus = workers * cluster.cpus_per_worker
    asked = f"cluster.{key}={workers}"
    if cpus > amounts["CPU"]:
        text = f"{asked} with cluster.cpus_per_worker={cluster.cpus_per_worker} ask for {cpus} CPU"
        rows.append(Finding("ray room", "warning", f"{text}, here are {amounts['CPU']}: the run would wait"))
    if cluster.device != "cpu" and amounts["GPU"] < workers:
        what = "the run would wait" if cluster.device == "gpu" else "the run would compute on CPUs"
        text = f"{asked} with cluster.device={cluster.device} ask for {workers} GPU, here are {amounts['GPU']}"
        hurts = amounts["GPU"] > 0 or cluster.device == "gpu"
        rows.append(Finding("ray room", "warning" if hurts else "ok", f"{text}: {what}"))
    return rows


def _judge_node(node: dict[str, Any], config: "Config | None") -> Finding:
    check = f"node {node['node']}"
    if node["problems"]:
        remedy = "mount the same storage on every node, writable for the user that Ray runs as"
        return Finding(check, "problem", "; ".join(node["problems"]), remedy if config is not None else "")
    if config is None:
        return Finding(check, "ok", "answers")
    splits = ", ".join(f"data.{split}" for split in config.data.splits)
    return Finding(check, "ok", f"run.dir {config.run.dir} written and read; {splits} read")


def _folders(config: "Config | None") -> dict[str, Any]:
    if config is None:
        return {"run": None, "data": []}
    data = [str((config.data.root / getattr(config.data, split)).expanduser()) for split in config.data.splits]
    return {"run": str(config.run.dir.expanduser()), "data": data}


def _relative_folders(config: "Config | None") -> list[Finding]:
    """Name paths that mean another folder on every node."""
    folders = _folders(config)
    return [
        Finding(key, "problem", f"{path} is relative: a job starts in a temporary folder", f"{key}=/shared/{path}")
        for key, path in (("run.dir", folders["run"]), *(("data.root", path) for path in folders["data"][:1]))
        if path is not None and not Path(path).is_absolute()
    ]


def _without_credentials(address: str) -> str:
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]).geturl()
