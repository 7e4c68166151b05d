"""The Ray cluster that work is spread over: that of RAY_ADDRESS, one that the caller started, or this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allpairs.errors import UserError


@contextmanager
def cluster(cpus: int, what: str) -> Iterator[None]:
    """Be connected to a cluster with at least `cpus` CPUs, one for each of the `what` ("shards").

    Raises:
        UserError: a cluster too small.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS", "local")
        local: dict[str, Any] = {}
        if address == "local":
            local = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        room = int(ray.cluster_resources().get("CPU", 0))
        if room < cpus:
            raise UserError(
                f"{what}={cpus}: this Ray cluster has {room} CPUs, and each needs one; accepted: 1 to {room}"
            )
        yield
    finally:
        if started:
            ray.shutdown()


def result(reference: Any) -> Any:
    """Return what a task gave; a UserError raised there is raised here as it was."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
