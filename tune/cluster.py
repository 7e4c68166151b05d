"""Where the trials of a search run: the cluster named by RAY_ADDRESS, else a Ray of its own on this machine."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allpairs.errors import UserError

DRIVER = "tune_driver"
"""The resource of which the driver of each trial holds one; were it a CPU, it would take those its workers need."""


@contextmanager
def cluster(cpus: int, drivers: int) -> Iterator[None]:
    """Connect to the cluster named by RAY_ADDRESS (a submitted job has one), else start Ray here for the block.

    A local Ray offers at least `cpus` CPUs and exactly `drivers` drivers, and its dashboard runs: Ray frees the workers
    of a trial that was stopped early only where it can ask the dashboard whether their controller is gone.

    Raises:
        UserError: the cluster offers no drivers.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if "RAY_ADDRESS" in os.environ:
        ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
    else:
        port = _free_port()
        # Told to Ray's processes by way of their environment: on their own they look for a running Ray, and give up
        # when this machine runs another one beside ours.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            resources={DRIVER: drivers},
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            **quiet,
        )
    try:
        _require_drivers()
        yield
    finally:
        ray.shutdown()


def _require_drivers() -> None:
    import ray

    if ray.cluster_resources().get(DRIVER, 0) < 1:
        raise UserError(
            f"this Ray cluster offers no {DRIVER!r}, of which each trial's driver holds one; start its head with "
            f"--resources='{{\"{DRIVER}\": 8}}' (deploy/ray-cluster.yaml does)"
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
