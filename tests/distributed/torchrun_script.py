"""Train each resolved configuration named on the command line, one after the other, as a rank started by torchrun.

A run named after one of `tests.distributed.faults` has that fault; beside one that all stopped, `.stopped0` has the
reason of rank 0 and `.left` the encoder's weights. A name that ends in `.bound` is no configuration, but where each
rank writes what `tests.distributed.bound` finds, or, in
`.gradients`, `tests.distributed.first_step`.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from allpairs.models.pieces import write_pieces
from distributed.config import load
from distributed.finish import complete
from distributed.loop import Training
from distributed.world import Stopped, World
from tests.distributed.bound import trajectories
from tests.distributed.faults import harmed
from tests.distributed.first_step import MODELS, gradients


def main() -> None:
    """Run all configurations; write the reason of a common stop where a test finds it."""
    dist.init_process_group("gloo")
    world = World.join(torch.device("cpu"))
    for path in map(Path, sys.argv[1:]):
        if path.suffix == ".bound":
            path.with_suffix(f".bound{world.rank}").write_text(json.dumps(trajectories(world)))
            continue
        if path.suffix == ".gradients":
            torch.save(
                {model: gradients(model, world) for model in MODELS}, path.with_suffix(f".gradients{world.rank}")
            )
            continue
        try:
            with harmed(load(path), world.rank) as config:
                training = Training(config, world, lambda _: None)
                try:
                    complete(training)
                except Stopped:
                    weights = training.strategy.weights(training.strategy.step.encoder)
                    write_pieces(path.parent, "left", weights, world.rank)
                    raise
        except Stopped as stopped:
            path.with_suffix(f".stopped{world.rank}").write_text(str(stopped))
    dist.barrier()
    # Ranks sometimes aborted here after all work was done ("terminate called without an active exception"; torch 2.13,
    # cause not traced): leave without the teardown. What a test reads is on disk.
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    main()
