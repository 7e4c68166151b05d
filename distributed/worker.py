"""What Ray Train runs on every worker: join the ranks, train, and stop together."""

import json
import logging
import os
from contextlib import nullcontext
from typing import Any

import torch

from allpairs.errors import UserError
from allpairs.files import write_text
from distributed.config import Config, validate
from distributed.heartbeat import Heartbeat
from distributed.run_directory import RunDirectory
from distributed.stopping import StopRequest
from distributed.world import Stopped, World


def train_worker(settings: dict[str, Any]) -> None:
    """Train with the resolved configuration `settings["config"]` (plain values); Ray Train's `train_loop_per_worker`.

    A reason to stop that all ranks agreed on (non-finite loss, too many bad samples) ends the function normally, so
    that Ray doesn't restart what would fail again; the driver reads the reason from the run directory.
    """
    import ray.train

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    config = validate(settings["config"])
    if config.train.strategy == "deepspeed":
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    path = RunDirectory(config.run_dir).heartbeat(ray.train.get_context().get_world_rank())
    with Heartbeat(path, interval=min(10.0, config.cluster.stuck_after * 60 / 5)) as heartbeat:
        _train(config, heartbeat)


def _train(config: Config, heartbeat: Heartbeat) -> None:
    import ray.train
    import ray.train.torch

    from distributed.finish import complete
    from distributed.loop import Training

    world = World.join(ray.train.torch.get_device())
    stop_request = StopRequest(RunDirectory(config.run_dir))
    try:
        try:
            training = Training(config, world, ray.train.report, heartbeat.at, stop_request)
        except UserError as error:
            # Raised while restoring, by all ranks or one: the others may wait in a collective, so this rank must fail.
            if world.size == 1:
                raise Stopped(str(error)) from None
            raise
        with stop_request.heard() if world.rank == 0 else nullcontext():
            complete(training)
    except Stopped as stopped:
        if world.rank == 0:
            write_text(RunDirectory(config.run_dir).stopped, json.dumps({"reason": str(stopped)}))
