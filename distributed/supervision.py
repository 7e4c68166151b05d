"""Watches over the workers of a run, from Ray Train's controller: who is asked for, lost, or stands still.

What it sees goes to the run's `events.jsonl`, one row per event with the line a person reads as `text`; the driver
prints them (`distributed.progress`). Ray's own words, forty lines a lost worker, stay there under `detail`.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.exceptions import NodeDiedError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    RestartingState,
    ShuttingDownState,
)
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2.api.exceptions import PreemptionError

from allpairs.errors import UserError
from distributed.config import Config
from distributed.elastic import WaitedTooLong
from distributed.heartbeat import READING, STEPPING, read
from distributed.progress import duration
from distributed.run_directory import RunDirectory
from distributed.stacks import gather_stacks

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.controller.state import TrainControllerState
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext, WorkerGroupPollStatus
    from ray.train.v2._internal.execution.worker_group.placement_group_handle import PlacementGroupHandle
    from ray.train.v2.api.preemption import PreemptionInfo


class StandsStill(RuntimeError):  # noqa: N818 -- what happened to a rank, not what we did wrong
    """A rank that gave no sign of life, or made no step, for `cluster.stuck_after` minutes."""


class Supervisor(WorkerGroupCallback, ControllerCallback):
    """One run's; Ray pickles it to the controller, so it is made of plain values."""

    def __init__(self, config: Config) -> None:
        self._run = RunDirectory(config.run_dir)
        self._cluster = config.cluster
        self._asked_since: float | None = None
        self._nodes: dict[int, str] = {}
        self._places: list[tuple[str, int]] = []
        self._room: PlacementGroupHandle | None = None
        self._told_leaving: set[str] = set()
        self._restarts = 0
        self._watch = Watch(config.cluster.stuck_after * 60)
        self._early, self._warned = Watch(config.cluster.stuck_after * 60 / 2), False

    def before_worker_group_start(self, worker_group_context: "WorkerGroupContext") -> None:
        """Say what is asked for; raise once it was asked for longer than the user would wait."""
        count, each = worker_group_context.num_workers, worker_group_context.resources_per_worker
        asked = f"{count}×{amounts(each)}"
        if self._asked_since is None:
            self._asked_since = time.monotonic()
            self._run.note("asked", f"asking for {asked}", workers=count, each=each)
        limit = self._cluster.wait_minutes
        # Ray asks anew every minute at the latest: a second less is the same round.
        if limit is not None and time.monotonic() - self._asked_since > limit * 60 - 1:
            raise WaitedTooLong(
                f"{asked} asked, no room on this Ray cluster within cluster.wait_minutes={limit:g}; --resume goes on"
            )
        for path in self._run.heartbeats.glob("*.json"):
            path.unlink(missing_ok=True)

    def after_worker_group_start(self, worker_group: "WorkerGroup") -> None:
        """Note which rank is on which node."""
        workers = {worker.distributed_context.world_rank: worker.metadata for worker in worker_group.get_workers()}  # type: ignore[union-attr]
        self._nodes = {rank: place.node_ip for rank, place in workers.items()}
        self._places = [(place.node_id, place.pid) for place in workers.values()]
        self._room = worker_group.get_worker_group_state().placement_group_handle
        self._asked_since = None
        nodes = len({place.node_id for place in workers.values()})
        places = {rank: {"node": place.node_ip, "pid": place.pid} for rank, place in workers.items()}
        text = f"{len(workers)} worker(s) up on {nodes} node(s); they read data, model and checkpoint"
        self._run.note("placed", text, ranks=places)

    def after_worker_group_training_start(self, worker_group: "WorkerGroup") -> None:
        """Start to listen."""
        self._watch.start(len(self._nodes))
        self._early.start(len(self._nodes))

    def after_worker_group_poll_status(self, worker_group_status: "WorkerGroupPollStatus") -> None:
        """End the run where a rank names a mistake; raise for a restart, as Ray Train's own detector of hangs does,
        once a rank stands still."""
        errors = worker_group_status.errors
        mistakes: dict[int, Exception] = {rank: why for rank, why in errors.items() if isinstance(why, UserError)}
        if mistakes:
            # Nothing that a restart would change. The other ranks may wait for this one, in a collective.
            _kill(self._places)
            raise ControllerError(UserError(self.explain(WorkerGroupError("", mistakes))))
        if errors:
            return
        statuses = worker_group_status.worker_statuses
        running = [rank for rank, status in statuses.items() if status.running]
        beats = {rank: read(self._run.heartbeat(rank)) for rank in running}
        self._warn(beats)
        still = self._watch.look(beats)
        if still:
            gather_stacks(self._run, self._places_of(still, beats))
            # Ray would ask a stopped process, or one inside NCCL, to shut down, and wait for its answer for ever.
            _kill(self._places)
            raise WorkerGroupError(
                "; ".join(still.values()),
                {rank: StandsStill(f"{text}; stacks in {self._run.stacks}") for rank, text in still.items()},
            )

    def _warn(self, beats: Mapping[int, dict[str, Any] | None]) -> None:
        """Say once, halfway to a restart, who stands still and where in the code each rank is."""
        still = self._early.look(beats)
        if still and not self._warned:
            told = "; ".join(f"{self._place(rank)} {text}" for rank, text in still.items())
            after = f"restart after {duration(self._cluster.stuck_after * 60)} (cluster.stuck_after)"
            stacks = gather_stacks(self._run, self._places_of(still, beats))
            self._run.note("still", f"{told}; {after}", stacks=stacks)
        self._warned = bool(still)

    def _places_of(self, first: Collection[int], ranks: Collection[int]) -> dict[int, str]:
        return {rank: self._place(rank) for rank in (*sorted(first), *sorted(set(ranks) - set(first)))}

    def after_controller_state_update(
        self, previous_state: "TrainControllerState", current_state: "TrainControllerState"
    ) -> None:
        """Say in one line that workers were lost and what happens now."""
        if current_state is previous_state:  # Ray looks for room again
            return
        if isinstance(current_state, RestartingState):
            error = current_state.training_failed_error
            after = f"restart {self._from_where()}, not counted"
            if not _is_preemption_failure(error):
                self._restarts += 1
                after = f"restart {self._restarts} of {self._cluster.max_failures}, {self._from_where()}"
            self._run.note("restart", f"{self.explain(error)}: {after}", detail=str(error))
            if self._cluster.min_workers is not None and self._room is not None:
                # Ray would free it once it starts others; how many depends on what is free.
                self._room.shutdown()
        elif isinstance(current_state, PreemptingState):
            self._tell_leaving(current_state.preemption_info)
        elif isinstance(current_state, ShuttingDownState):
            final = getattr(current_state.next_state, "training_failed_error", None)
            if final is not None:
                self._run.note("failed", self.explain(final), detail=str(final))

    def _tell_leaving(self, notice: "PreemptionInfo") -> None:
        """Say once of each node that it will be taken away."""
        new = {node: ranks for node, ranks in notice.preempted_node_to_ranks.items() if node not in self._told_leaving}
        self._told_leaving |= new.keys()
        for ranks in new.values():
            when = (
                "" if notice.deadline_ms is None else f" in {duration(max(0, notice.deadline_ms / 1000 - time.time()))}"
            )
            where = self._nodes.get(ranks[0], "its node")
            text = f"{where} is to be taken away{when} ({_ranks(ranks)}): all ranks save a checkpoint now"
            self._run.note("note", text)

    def explain(self, error: Exception) -> str:
        """Say in one line which ranks failed, where, and why: the lost and the still first, for they take others down.

        A rank whose peer is gone fails too, in its collective; that is the consequence and not told. It may be all that
        is known yet, of a node that was cut off: then those of whom nothing is heard are named.
        """
        if isinstance(error, PreemptionError):
            ranks = error.preemption_info.preempted_ranks
            return f"{_ranks(ranks)} on {self._nodes.get(ranks[0], 'a node')}: the node is taken away"
        failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
        if not failures:
            cause = getattr(error, "controller_failure", error)
            return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        lost = {rank: why for rank, failure in failures.items() if (why := _lost(failure)) is not None}
        if lost:
            return "; ".join(f"{self._place(rank)} {why}" for rank, why in sorted(lost.items()))
        gone = self._nodes.keys() - failures.keys()
        if gone and all("gloo" in str(failure) and "by peer" in str(failure) for failure in failures.values()):
            which = "was lost" if len(gone) == 1 else "or one of them was lost"
            return f"{self._place(min(gone)) if len(gone) == 1 else _ranks(sorted(gone))} {which} (connection closed)"
        rank, failure = min(failures.items())
        first = next(iter(str(failure).strip().splitlines()), "")
        name = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
        others = f" (and {len(failures) - 1} more rank(s))" if len(failures) > 1 else ""
        return f"{self._place(rank)} failed{others}: {name}{first}"

    def _place(self, rank: int) -> str:
        return f"rank {rank} on {self._nodes[rank]}" if rank in self._nodes else f"rank {rank}"

    def _from_where(self) -> str:
        try:
            step = self._run.last_step()
            return "from the start" if step is None else f"from step {step:,}"
        except UserError as error:
            return str(error)


class Watch:
    """Tells from heartbeats which rank stands still; compares them with a clock of its own, never clocks of nodes."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._alive: dict[int, tuple[int, float]] = {}
        self._place: dict[int, tuple[tuple[int, str], float]] = {}

    def start(self, ranks: int, now: float | None = None) -> None:
        """Begin with `ranks` ranks that have not been heard yet."""
        now = time.monotonic() if now is None else now
        self._alive = dict.fromkeys(range(ranks), (0, now))
        self._place = dict.fromkeys(range(ranks), ((0, "not heard yet"), now))

    def look(self, beats: Mapping[int, dict[str, Any] | None], now: float | None = None) -> dict[int, str]:
        """Take the newest `beats` of the running ranks; return the ranks that stand still, each with what to say.

        A silent process is to blame alone. Where all live, a step that takes longer than the limit is: one that still
        reads samples keeps the others waiting; else nobody can say who. Evaluation and checkpoints may take their time.
        """
        now = time.monotonic() if now is None else now
        for rank, beat in beats.items():
            if beat is None:
                continue
            if beat["beat"] != self._alive[rank][0]:
                self._alive[rank] = (beat["beat"], now)
            if (place := (beat["step"], beat["doing"])) != self._place[rank][0]:
                self._place[rank] = (place, now)
        silent = {rank for rank in beats if now - self._alive[rank][1] > self._limit}
        if silent:
            return {rank: self._silent(rank, beats.keys() - silent) for rank in sorted(silent)}
        places = {rank: self._place[rank][0] for rank in beats}
        if not beats or any(now - self._place[rank][1] <= self._limit for rank in beats):
            return {}
        if any(doing not in (READING, STEPPING) for _, doing in places.values()):
            return {}
        late = {rank for rank, (_, doing) in places.items() if doing == READING} or set(places)
        return {
            rank: f"stands still {_at(*places[rank])} for {duration(self._limit)}{self._others(places.keys() - late)}"
            for rank in sorted(late)
        }

    def _silent(self, rank: int, others: set[int]) -> str:
        return f"gave no sign of life for {duration(self._limit)}{self._others(others)}"

    def _others(self, ranks: set[int]) -> str:
        places: dict[tuple[int, str], list[int]] = {}
        for rank in sorted(ranks):
            places.setdefault(self._place[rank][0], []).append(rank)
        told = [
            f"{_ranks(here)} {'wait' if len(here) > 1 else 'waits'} {_at(*place)}" for place, here in places.items()
        ]
        return f" ({'; '.join(told)})" if told else ""


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{', …' if len(ranks) > 8 else ''}"


def _at(step: int, doing: str) -> str:
    return f"at step {step:,}" if doing == STEPPING else f"{doing}, step {step:,}"


def _kill(places: list[tuple[str, int]]) -> None:
    """End the processes of all ranks, each from its own node; a node that doesn't answer is Ray's to notice."""
    import os
    import signal

    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def end(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    ended = [
        end.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(pid)
        for node_id, pid in places
    ]
    ray.wait(ended, num_returns=len(ended), timeout=30)


def amounts(resources: Mapping[str, float]) -> str:
    """Say what one worker gets: `1 CPU`, `(6 CPU + 1 GPU)`."""
    told = " + ".join(f"{amount:g} {name}" for name, amount in resources.items())
    return told if len(resources) == 1 else f"({told})"


def _lost(failure: Exception) -> str | None:
    """Say how a worker was lost; None for an exception that its code raised."""
    if isinstance(failure, StandsStill):
        return str(failure)
    if not isinstance(failure, WorkerHealthCheckFailedError):
        return None
    cause = failure.health_check_failure
    text = str(cause)
    if isinstance(cause, NodeDiedError) or "node died" in text or "node has died" in text or "node was dead" in text:
        return "was lost (its node is gone)"
    if "running low on memory" in text:
        return "was lost (killed for its node's memory)"
    return "was lost (its process died)" if isinstance(cause, RayActorError) else None
