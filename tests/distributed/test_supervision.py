"""Who stands still, who was lost, and how it is said; the same on live workers is in tests/deploy/test_job.py."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError
from ray.train import ControllerError, FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    PreemptingState,
    RestartingState,
    RunningState,
    ShuttingDownState,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo
from rich.console import Console

from allpairs.errors import UserError
from distributed import supervision
from distributed.heartbeat import READING, STEPPING, Heartbeat, read, read_stack
from distributed.progress import Follower
from distributed.run_directory import RunDirectory
from distributed.supervision import StandsStill, Supervisor, Watch
from retrieval_eval.run_files import read_rows

ROOT = Path(__file__).parents[2]


def beats(count: int, **places: tuple[int, str]) -> dict[int, dict]:
    """Beat `count` of ranks r0, r1, ... at their places."""
    return {int(name[1:]): {"beat": count, "step": step, "doing": doing} for name, (step, doing) in places.items()}


def watch(limit: float, ranks: int) -> Watch:
    watch = Watch(limit)
    watch.start(ranks, now=0)
    return watch


def test_a_silent_rank_is_named_and_where_the_others_wait() -> None:
    watching = watch(60, 3)
    heard = beats(1, r0=(41, STEPPING), r1=(41, STEPPING), r2=(41, STEPPING))
    assert watching.look(heard, now=10) == {}
    alive = beats(2, r0=(41, STEPPING), r2=(41, STEPPING))
    assert watching.look(heard | alive, now=69) == {}
    again = beats(3, r0=(41, STEPPING), r2=(41, STEPPING))
    assert watching.look(heard | again, now=71) == {1: "gave no sign of life for 60 s (ranks 0, 2 wait at step 41)"}


def test_a_rank_that_was_never_heard_counts_from_the_start() -> None:
    watching = watch(60, 2)
    assert watching.look({0: None, 1: None}, now=59) == {}
    assert set(watching.look({0: None, 1: None}, now=61)) == {0, 1}


def test_a_step_without_end_blames_the_rank_that_still_reads() -> None:
    watching = watch(60, 2)
    places = {"r0": (7, STEPPING), "r1": (7, READING)}
    assert watching.look(beats(1, **places), now=1) == {}
    assert watching.look(beats(2, **places), now=50) == {}
    (text,) = watching.look(beats(3, **places), now=62).values()
    assert text == "stands still reading samples, step 7 for 60 s (rank 0 waits at step 7)"
    assert set(watch_all(watching, 62)) == {0, 1}


def watch_all(watching: Watch, now: float) -> dict[int, str]:
    """All ranks inside one step for longer than the limit: nobody can say whose fault it is."""
    watching.start(2, now)
    for count, later in enumerate((1, 40, 80), start=1):
        still = watching.look(beats(count, r0=(8, STEPPING), r1=(8, STEPPING)), now + later)
    return still


def test_evaluation_may_take_its_time_and_a_rank_that_goes_on_is_well() -> None:
    watching = watch(60, 2)
    for count, now in enumerate(range(0, 600, 30), start=1):
        evaluating = {"r0": (7, "evaluating and writing a checkpoint"), "r1": (7, STEPPING)}
        assert watching.look(beats(count, **evaluating), now=now) == {}
    watching = watch(60, 2)
    for count, now in enumerate(range(0, 600, 30), start=1):
        assert watching.look(beats(count, r0=(count, STEPPING), r1=(count, STEPPING)), now=now) == {}


def test_a_heart_beats_while_its_rank_is_busy_and_stops_with_it(tmp_path: Path) -> None:
    path = tmp_path / "heartbeats/rank-00000.json"
    with Heartbeat(path, interval=0.02) as heart:
        heart.at(3, READING)
        heart.at(3, STEPPING)
        while (beat := read(path)) is None or beat["beat"] < 5:
            time.sleep(0.01)
        assert (beat["step"], beat["doing"]) == (3, STEPPING)
    last = read(path)
    time.sleep(0.1)
    assert read(path) == last


HOLDING = """
import re, sys, time
from pathlib import Path
from distributed.heartbeat import Heartbeat

def hold():
    re.match("(a+)+$", "a" * 60 + "b")

with Heartbeat(Path(sys.argv[1]), interval=0.05, patience=0.4):
    while not Path(sys.argv[1]).exists():
        time.sleep(0.05)
    hold()
"""


def test_code_that_keeps_python_s_lock_leaves_its_stack_too(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.json"
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(path)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (stack := read_stack(path)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "stack" not in read(path)  # the heart itself has stopped
    finally:
        process.kill()
        process.wait()
    assert [call.rpartition(" ")[2] for call in stack][:2] == ["<module>", "hold"]
    assert stack[1].startswith("<string>:7 ")


STUCK = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from distributed.heartbeat import READING, STEPPING, Heartbeat
from distributed.world import World

def nap():
    time.sleep(300)

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
with Heartbeat(folder / f"heartbeats/rank-{rank:05d}.json", interval=0.1, patience=0.3) as heart:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World.join(torch.device("cpu"))
    heart.at(7, READING)
    if rank == 1:
        nap()
    heart.at(7, STEPPING)
    world.sum([1.0])
"""


def poll_for_ever(supervisor: Supervisor, status: WorkerGroupPollStatus) -> None:
    """What Ray Train's controller does."""
    while True:
        supervisor.after_worker_group_poll_status(status)
        time.sleep(0.05)


def test_of_a_rank_that_sleeps_the_driver_shows_where_every_rank_is(supervisor, tiny_config, monkeypatch) -> None:
    """Two real ranks: rank 1 sleeps where it reads, rank 0 waits for it in a collective."""
    supervisor = Supervisor(tiny_config(cluster={"workers": 2, "stuck_after": 0.04}))
    supervisor._nodes = {0: "10.0.0.1", 1: "10.0.0.2"}
    run = RunDirectory(supervisor._run.root)
    ranks = [subprocess.Popen([sys.executable, "-c", STUCK, str(rank), str(run.root)], cwd=ROOT) for rank in (0, 1)]
    ended = []
    monkeypatch.setattr(supervision, "_kill", ended.append)
    printed = io.StringIO()
    try:
        while [(read(run.heartbeat(rank)) or {}).get("doing") for rank in (0, 1)] != [STEPPING, READING]:
            assert all(process.poll() is None for process in ranks)
            time.sleep(0.05)
        with Follower(Console(file=printed)).following(run):
            supervisor.after_worker_group_training_start(None)
            status = WorkerGroupPollStatus({rank: WorkerStatus(running=True) for rank in (0, 1)})
            with pytest.raises(WorkerGroupError) as caught:
                poll_for_ever(supervisor, status)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert len(ended) == 1
    assert {rank: str(why) for rank, why in caught.value.worker_failures.items()} == {
        1: f"stands still reading samples, step 7 for 2 s (rank 0 waits at step 7); stacks in {run.stacks}"
    }
    (event,) = read_rows(run.events)
    still = "rank 1 on 10.0.0.2 stands still reading samples, step 7 for 1 s (rank 0 waits at step 7)"
    assert event["text"] == f"{still}; restart after 2 s (cluster.stuck_after)"
    asleep, waits, where = event["stacks"]
    assert asleep == "rank 1 on 10.0.0.2: nap (<string>:10) ← <module> (<string>:18)"
    assert waits.startswith("rank 0 on 10.0.0.1: all_reduce (distributed/distributed_c10d.py:")
    assert " ← sum (distributed/world.py:" in waits
    assert where == f"the whole stacks of 2 rank(s): {run.stacks}"
    assert printed.getvalue().splitlines()[-4:] == [f"  {text}" for text in (event["text"], *event["stacks"])]
    whole = run.stacks.read_text()
    assert whole.index("rank 1 on 10.0.0.2\n  <string>:18 <module>\n  <string>:10 nap\n") < whole.index("rank 0 on")


@pytest.fixture
def supervisor(tiny_config) -> Supervisor:
    config = tiny_config(cluster={"workers": 2})
    config.run_dir.mkdir(parents=True)
    supervisor = Supervisor(config)
    supervisor._nodes = {0: "10.0.0.1", 1: "10.0.0.2"}
    return supervisor


def lost(cause: Exception) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nforty lines", failure=cause)


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({0: RuntimeError("gloo: connection closed"), 1: lost(ActorDiedError())},
         "rank 1 on 10.0.0.2 was lost (its process died)"),
        ({1: lost(NodeDiedError("x"))}, "rank 1 on 10.0.0.2 was lost (its node is gone)"),
        ({1: RuntimeError("gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]")},
         "rank 0 on 10.0.0.1 was lost (connection closed)"),
        ({0: RuntimeError("a\nb"), 1: RuntimeError("c")},
         "rank 0 on 10.0.0.1 failed (and 1 more rank(s)): RuntimeError: a"),
        ({1: StandsStill("gave no sign of life for 5:00")}, "rank 1 on 10.0.0.2 gave no sign of life for 5:00"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_of_the_ranks_to_blame(supervisor, failures, said) -> None:
    assert supervisor.explain(WorkerGroupError("forty lines", failures)) == said


def test_a_mistake_that_one_rank_names_ends_the_run_without_a_restart(supervisor, tiny_config, monkeypatch) -> None:
    ended = []
    monkeypatch.setattr(supervision, "_kill", ended.append)
    supervisor._places = [("node-a", 11), ("node-b", 12)]
    waiting, failed = WorkerStatus(running=True), WorkerStatus(running=False, error=UserError("0.tar: was cut off"))
    with pytest.raises(ControllerError) as raised:
        supervisor.after_worker_group_poll_status(WorkerGroupPollStatus({0: waiting, 1: failed}))
    assert ended == [supervisor._places]
    # Ray restarts after errors of workers, up to max_failures times, and never after one of the controller.
    policy = DefaultFailurePolicy(FailureConfig(max_failures=2))
    assert policy.make_decision(raised.value) == FailureDecision.RAISE
    final = ShuttingDownState(next_state=ErroredState(training_failed_error=raised.value))
    supervisor.after_controller_state_update(RunningState(), final)
    (row,) = read_rows(tiny_config().run_dir / "events.jsonl")
    assert (row["event"], row["text"]) == ("failed", "rank 1 on 10.0.0.2 failed: 0.tar: was cut off")


def test_restarts_are_counted_and_say_where_they_begin(supervisor, tiny_config) -> None:
    run = tiny_config().run_dir
    error = WorkerGroupError("forty lines", {1: lost(ActorDiedError())})
    supervisor.after_controller_state_update(RunningState(), RestartingState(training_failed_error=error))
    (run / "checkpoints/step-7").mkdir(parents=True)
    (run / "checkpoints/step-7/position.json").write_text('{"step": 7}')
    (run / "checkpoints/last").symlink_to("step-7")
    supervisor.after_controller_state_update(RunningState(), RestartingState(training_failed_error=error))
    first, second = (json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())
    assert first["text"] == "rank 1 on 10.0.0.2 was lost (its process died): restart 1 of 2, from the start"
    assert second["text"].endswith("restart 2 of 2, from step 7")
    assert "forty lines" in first["detail"]


def test_a_node_that_is_to_go_is_told_once_and_its_restart_not_counted(supervisor, tiny_config) -> None:
    notice = PreemptionInfo(deadline_ms=int((time.time() + 119.5) * 1000), preempted_node_to_ranks={"node-b": [1]})
    leaving = PreemptingState(preemption_info=notice, detected_at_s=0.0)
    supervisor.after_controller_state_update(RunningState(), leaving)
    supervisor.after_controller_state_update(leaving, PreemptingState(preemption_info=notice, detected_at_s=0.0))
    error = PreemptionError(preemption_info=notice, drain_timed_out=True)
    restarting = RestartingState(training_failed_error=error)
    supervisor.after_controller_state_update(leaving, restarting)
    supervisor.after_controller_state_update(restarting, restarting)  # Ray looks for room, again and again
    killed = WorkerGroupError("forty lines", {1: lost(ActorDiedError())})
    supervisor.after_controller_state_update(RunningState(), RestartingState(training_failed_error=killed))
    assert [row["text"] for row in read_rows(tiny_config().run_dir / "events.jsonl")] == [
        "10.0.0.2 is to be taken away in 1:59 (rank 1): all ranks save a checkpoint now",
        "rank 1 on 10.0.0.2: the node is taken away: restart from the start, not counted",
        "rank 1 on 10.0.0.2 was lost (its process died): restart 1 of 2, from the start",
    ]
