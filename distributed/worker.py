"""What Ray Train runs on every worker: join the ranks, train, and stop together."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from allpairs.errors import UserError
from allpairs.files import disk_is_full, write_text
from distributed.config import Config, validate
from distributed.heartbeat import Heartbeat
from distributed.preemption import PreemptionNotice
from distributed.run_directory import RunDirectory
from distributed.stopping import Request, stop_flag
from distributed.world import Stopped, World


def train_worker(settings: dict[str, Any]) -> None:
    """Train with the resolved configuration `settings["config"]` (plain values); Ray Train's `train_loop_per_worker`.

    A reason to stop that all ranks agreed on (non-finite loss, too many bad samples, no checkpoint that can be used)
    ends the function normally, so that Ray doesn't restart what would fail again; the driver reads the reason from the
    run directory. A UserError of one rank alone ends the run too: `distributed.supervision` ends the others.
    """
    import ray.train

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    config = validate(settings["config"])
    if config.train.strategy == "deepspeed":
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    path = RunDirectory(config.run_dir).heartbeat(ray.train.get_context().get_world_rank())
    limit = config.cluster.stuck_after * 60
    with Heartbeat(path, interval=min(10.0, limit / 10), patience=limit / 3) as heartbeat:
        _train(config, heartbeat)


def _train(config: Config, heartbeat: Heartbeat) -> None:
    import ray.train
    import ray.train.torch

    from distributed.finish import complete
    from distributed.loop import Training
    from distributed.scaling import MakeWay

    world = World.join(ray.train.torch.get_device())
    run = RunDirectory(config.run_dir)
    stop_request = Request(stop_flag(run.root))
    make_way = None if config.cluster.min_workers is None else MakeWay(run)
    with told_in_one_line(run, world.rank):
        training = Training(
            config,
            world,
            ray.train.report,
            heartbeat.at,
            stop_request,
            save_asked=PreemptionNotice(),
            make_way=make_way,
        )
        with ExitStack() as listening:
            if world.rank == 0:  # what it hears, all learn
                listening.enter_context(stop_request.heard())
                if make_way is not None:
                    listening.enter_context(make_way.request.heard())
            complete(training)


@contextmanager
def told_in_one_line(run: RunDirectory, rank: int) -> Iterator[None]:
    """Make of an end that a restart would only repeat what the driver says in one line.

    Raises:
        UserError: the disk is full, so that nothing more can be left in the run directory.
    """
    try:
        yield
    except Stopped as stopped:
        if rank != 0:
            return
        try:
            write_text(run.stopped, json.dumps({"reason": str(stopped)}))
        except OSError:
            raise UserError(str(stopped)) from None
    except OSError as error:
        if not disk_is_full(error):
            raise
        where = f" to {error.filename}" if error.filename else ""
        raise UserError(
            f"nothing can be written{where} ({error.strerror}); the last checkpoint is whole: make room, and go on "
            "with --resume auto"
        ) from None
