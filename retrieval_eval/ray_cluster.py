"""The one way to Ray: the cluster that RAY_ADDRESS names, one the caller is in already, or a Ray of its own here."""

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from allpairs.errors import UserError


@contextmanager
def cluster(cpus: int, *, resources: Mapping[str, float] | None = None, dashboard: bool = False) -> Iterator[None]:
    """Be connected to Ray within the block; what was started for it ends with it.

    A Ray of this machine offers at least `cpus` CPUs, so that a laptop runs any number of workers, if slowly, and
    exactly `resources`. `dashboard`: Ray frees the workers of a trial that was stopped early only where it can ask its
    dashboard whether their controller is gone.
    """
    import ray
    from ray._private.ray_logging import stdout_deduplicator

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    local: dict[str, Any] = {}
    if address == "local":
        local = {"num_cpus": max(cpus, os.cpu_count() or 1), "resources": dict(resources or {})}
        local["include_dashboard"] = dashboard
        if dashboard:
            port = _free_port()
            # Told to Ray's processes by way of their environment: on their own they look for a running Ray, and give up
            # when this machine runs another one beside ours.
            os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
            local |= {"dashboard_host": "127.0.0.1", "dashboard_port": port}
    try:
        with _in_groups_of_their_own():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises bare ones for a node that took too long
        raise UserError(_not_up(address, error)) from None
    # Ray tells every driver of every dead worker, ten lines each, also with log_to_driver off; its files keep them.
    stdout_deduplicator.skip_re = re.compile("")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Let what Ray starts within the block not hear a signal to this command's process group (`kill -- -PID`).

    The command hears it and asks Ray for what is left to do. Linux ends these processes with the command all the same;
    elsewhere Ray ends them by their group, which they must stay in.
    """
    from ray._private import services as module
    from ray._private import utils

    services: Any = module
    start = services.ConsolePopen
    if utils.detect_fate_sharing_support_linux():
        services.ConsolePopen = partial(start, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = start


def _not_up(address: str, error: Exception) -> str:
    """Say in one line that Ray could not be started or joined."""
    why = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if address == "local":
        return (
            f"Ray did not start on this machine ({why}); try again when it is less busy. Its log files lie in "
            "/tmp/ray/session_latest/logs"
        )
    return f"RAY_ADDRESS={address}: no Ray cluster answers there ({why}); `python -m distributed.doctor` looks closer"


def joins_cluster() -> bool:
    """Whether `cluster` joins a Ray that is there already; else it starts one on this machine."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def require_cpus(count: int, what: str) -> None:
    """Raise UserError unless the cluster has `count` CPUs, one for each of the `what` ("shards")."""
    import ray

    room = int(ray.cluster_resources().get("CPU", 0))
    if room < count:
        raise UserError(f"{what}={count}: this Ray cluster has {room} CPUs, and each needs one; accepted: 1 to {room}")


def gpu_share(actors: int) -> float:
    """Return the part of a GPU that each of `actors` gets so that all of them run at once; 0 where there is no GPU."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus == 0:
        return 0.0
    neighbours = -(-actors // gpus)  # actors that share the fullest GPU
    return 1.0 if neighbours == 1 else int(10_000 / neighbours) / 10_000  # Ray counts in ten-thousandths


def result(reference: Any) -> Any:
    """Return what a task gave; a UserError raised there is raised here as it was."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
