"""How Ray Train changes the number of workers of an elastic run: in its controller, and from inside the workers.

Fewer: the workers that are left are ended with those that were lost, and all begin again from the last checkpoint, as
many as there is room for once `distributed.elastic.Patience` has run out. More: once there is room, every
`cluster.replace_minutes`, the ranks are asked to make way: they save a checkpoint at the step they are in and hold, so
that no step is done twice, until Ray has ended them and started more.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from distributed.config import Config
from distributed.elastic import Patience
from distributed.run_directory import RunDirectory
from distributed.stopping import POLL, Flag, Request, stop_flag
from distributed.supervision import amounts

HOLD = 120.0
"""Seconds that ranks which made way wait to be ended, before they go on by themselves."""


class ElasticTrainer(TorchTrainer):
    """Ray's trainer with our word on the number of workers."""

    def __init__(self, config: Config, *arguments: Any, **more: Any) -> None:
        self._config = config
        super().__init__(*arguments, **more)

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
        policy = ElasticScaling(self.scaling_config, self._config)  # type: ignore[arg-type]  # of V2, made by us
        return super()._initialize_and_run_controller(**controller_init_kwargs | {"scaling_policy": policy})


class ElasticScaling(ElasticScalingPolicy):
    """Ray's elastic policy, which would go on with fewer workers at once, with patience, and without losing steps.

    Room is what is free now on nodes that stay. Ray's own count takes what nodes have, whoever uses it, and may be
    twenty seconds old: workers then are asked for where there is none, for another minute.
    """

    def __init__(self, scaling_config: ScalingConfig, config: Config) -> None:
        super().__init__(scaling_config)
        self._run = RunDirectory(config.run_dir)
        self._most = config.cluster.workers
        self._every = config.cluster.replace_minutes * 60
        self._each = dict(scaling_config._resources_per_worker_not_none)
        self._patience = Patience(config.cluster, amounts(self._each))
        self._looked = 0.0
        self._making_way = False

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Begin with nobody asked to make way."""
        super().after_controller_start(train_run_context)
        self._take_back()

    def on_controller_start_worker_group(self, *, scaling_config: ScalingConfig, num_workers: int) -> None:
        """Those that made way are gone: ask nobody of the next ones."""
        self._take_back()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many workers as there is room for, once it is worth no more waiting."""
        self._maybe_send_resource_request()
        workers, text = self._patience.look(self._room(), time.monotonic())
        if workers is None:
            if text is not None:
                self._run.note("note", text)
            time.sleep(0.5)  # Ray's controller would ask again at once
            return NoopDecision()
        self._run.note("decided", text or "", workers=workers)
        return self._get_resize_decision(workers)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Ask the ranks to make way for more, and start those once they have."""
        self._maybe_send_resource_request()
        self._patience.rest()
        now, current = time.monotonic(), worker_group_state.num_workers
        self._making_way = self._making_way and resize_flag(self._run).is_set()
        made_way = self._making_way and holding_flag(self._run).is_set()
        if current >= self._most or (self._making_way and not made_way):
            return NoopDecision()
        if not self._making_way and now - max(self._looked, worker_group_state.start_time) < self._every:
            return NoopDecision()
        self._looked = now
        wanted = min(self._most, current + self._room())
        if made_way:
            if wanted > current:
                self._run.note("decided", "there is room again", workers=wanted)
                return self._get_resize_decision(wanted)
            self._take_back()
        elif wanted > current:
            text = f"there is room for {wanted} workers, {current} are up: all ranks save a checkpoint and make way"
            self._run.note("making way", text)
            resize_flag(self._run).set()
            self._making_way = True
        return NoopDecision()

    def _take_back(self) -> None:
        self._making_way = False
        for flag in (resize_flag(self._run), holding_flag(self._run)):
            flag.clear()

    def _room(self) -> int:
        """Return for how many workers there is room on nodes that are there and stay."""
        leaving = ray._private.state.state.get_draining_nodes()
        here = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(leaving)
        free = ray._private.state.available_resources_per_node()
        return room_for(self._each, {node: free[node] for node in here & free.keys()}, most=self._most)


def room_for(each: Mapping[str, float], free: Mapping[str, Mapping[str, float]], *, most: int) -> int:
    """Return for how many workers, up to `most`, the nodes have room, by what a worker needs and is `free` on each."""
    needs = {name: amount for name, amount in each.items() if amount > 0}
    if not needs:
        return most
    fits = (min(int(node.get(name, 0) // amount) for name, amount in needs.items()) for node in free.values())
    return min(most, sum(fits))


class MakeWay:
    """What a rank knows of a run that is to get more workers."""

    def __init__(self, run: RunDirectory) -> None:
        self.request = Request(resize_flag(run))
        self._holding = holding_flag(run)
        self._stop = stop_flag(run.root)

    def hold(self) -> None:
        """Wait to be ended, once everything is saved; return where that was taken back, nobody does it, or the run is
        to stop."""
        self._holding.set()
        until = time.monotonic() + HOLD
        while self.request.flag.is_set() and not self._stop.is_set() and time.monotonic() < until:
            time.sleep(POLL)
        self._holding.clear()
        self.request.take_back()


def resize_flag(run: RunDirectory) -> Flag:
    """Return what asks the ranks of `run` to make way."""
    return Flag(run.root, "make-way")


def holding_flag(run: RunDirectory) -> Flag:
    """Return what says that they have."""
    return Flag(run.root, "made-way")
