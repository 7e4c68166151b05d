"""Who encodes what when workers come and go, how long is waited for them, and what is said; the loop's part of it.

The same on a cluster whose nodes come and go is in test_elastic_cluster.py.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from allpairs.errors import UserError
from distributed.checkpoints import Checkpoints
from distributed.config.tree import Cluster
from distributed.data.order import batch_sizes
from distributed.elastic import Patience, WaitedTooLong, change_of_workers, reason_for, rows_at_once, workers_over_time
from distributed.finish import complete
from distributed.launch import choose_device, set_up
from distributed.loop import Training
from distributed.preemption import LEAD, PreemptionNotice
from distributed.run_directory import RunDirectory
from distributed.scaling import room_for
from distributed.tracking.tracker import MetricsFile
from distributed.world import World
from retrieval_eval.run_files import read_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("world", "micro", "least", "at_once"),
    [
        (4, None, 1, None),  # as many as asked for: all at once
        (3, None, 1, 16),  # a world that doesn't divide the batch: shares of 22, 21, 21
        (1, None, 1, 16),
        (1, None, None, None),  # not elastic: the user's own change of `cluster.workers` decides
        (1, 6, 1, 6),
        (4, 6, 1, 6),
    ],
)
def test_a_worker_encodes_no_more_at_once_than_with_all_workers(tiny_config, world, micro, least, at_once):
    config = tiny_config(train={"global_batch": 64, "micro_batch": micro}, cluster={"workers": 4, "min_workers": least})
    assert rows_at_once(config, world) == at_once


def test_global_batches_are_the_same_for_every_number_of_workers(tiny_config):
    with pytest.raises(UserError, match=r"train\.global_batch=63 .*accepted is at least 64"):
        tiny_config(train={"global_batch": 63}, cluster={"workers": 4, "min_workers": 1})
    with pytest.raises(UserError, match=r"cluster\.min_workers=3 is more than cluster\.workers=2; accepted: 1 to 2"):
        tiny_config(cluster={"workers": 2, "min_workers": 3})
    for samples in range(64, 300):
        assert len({tuple(batch_sizes(samples, 64, world=world, min_rows=2)) for world in (1, 2, 3, 4)}) == 1


def test_gpus_for_the_least_workers_are_enough():
    assert choose_device(Cluster(workers=4, min_workers=2), 2) == (True, None)
    uses, note = choose_device(Cluster(workers=4, min_workers=2), 1)
    assert not uses
    assert note.startswith("cluster.device=auto: 1 GPU(s) for 2 workers")


def test_all_workers_are_waited_for_and_then_gone_without():
    cluster = Cluster(workers=4, min_workers=2, replace_minutes=1, wait_minutes=10)
    patience = Patience(cluster, "1 CPU")
    assert patience.look(4, now=100) == (4, "there is room for all 4")
    patience.rest()
    assert patience.look(3, now=100) == (None, None)
    waiting = "waiting: 2 to 4 workers of 1 CPU asked, room for 3; the run goes on with 3 in 55 s"
    assert patience.look(3, now=105) == (None, waiting)
    assert patience.look(3, now=109) == (None, None)
    assert patience.look(3, now=110)[1] == waiting.replace("55", "50")
    assert patience.look(3, now=119) == (None, None)  # ever more seldom
    assert patience.look(3, now=120)[1] == waiting.replace("55", "40")
    assert patience.look(3, now=160) == (3, "no room for more within cluster.replace_minutes=1")
    # What was decided may fail; it is waited no longer for that.
    assert patience.look(2, now=165) == (2, "no room for more within cluster.replace_minutes=1")
    assert patience.look(1, now=170) == (
        None,
        "waiting: 2 to 4 workers of 1 CPU asked, room for 1; the run ends in 8:50 (cluster.wait_minutes)",
    )
    assert patience.look(4, now=300) == (4, "there is room for all 4")
    with pytest.raises(WaitedTooLong, match=r"room for 1 within cluster\.wait_minutes=10; --resume goes on"):
        patience.look(1, now=700)
    patience.rest()
    assert patience.look(0, now=700) == (None, None)


def test_without_a_limit_it_is_waited_for_ever():
    patience = Patience(Cluster(workers=2, min_workers=1, wait_minutes=None), "1 CPU")
    patience.look(0, now=0)
    for now in range(10, 100_000, 400):
        assert patience.look(0, now=now)[1].endswith("room for 0; the run goes on with 1 once there is room")


@pytest.mark.parametrize(
    ("each", "free", "room"),
    [
        ({"CPU": 2}, {"a": {"CPU": 5}, "b": {"CPU": 1}, "c": {"CPU": 2}}, 3),
        ({"CPU": 6, "GPU": 1}, {"a": {"CPU": 64, "GPU": 2}, "b": {"CPU": 64}}, 2),
        ({"CPU": 1}, {"a": {"CPU": 1000}}, 8),
        ({"CPU": 1, "GPU": 0}, {"a": {"CPU": 1}, "b": {}}, 1),
    ],
)
def test_room_is_counted_node_by_node(each, free, room):
    assert room_for(each, free, most=8) == room


def test_a_change_is_one_line_with_its_reason(tiny_config):
    config = tiny_config(train={"global_batch": 64}, cluster={"workers": 2, "min_workers": 1})
    events = [
        {"event": "decided", "text": "too old", "workers": 1},
        {"event": "resized", "text": "", "workers": 1},
        {"event": "decided", "text": "not those", "workers": 2},
        {"event": "decided", "text": "no room", "workers": 1},
        {"event": "placed", "text": ""},
    ]
    text, row = change_of_workers(config, 2, 1, 1234, reason_for(events, 1))
    assert text == (
        "2 → 1 workers (no room): step 1,235 goes on with 64 samples a worker, encoded 32 at a time, the same global "
        "batches of 64"
    )
    assert row == {"train/workers": 1, "train/workers_before": 2, "train/samples_per_worker": 64}
    assert reason_for(events[:2], 1) is None
    own = tiny_config(train={"global_batch": 64}, cluster={"workers": 3})
    assert change_of_workers(own, 1, 3, 0, None)[0] == (
        "1 → 3 workers (cluster.workers=3): step 1 goes on with 22 samples a worker, the same global batches of 64"
    )
    rows = [{"step": 6} | row, {"step": 9, "train/loss": 1.0}]
    rows.append({"step": 12, "train/workers": 2, "train/workers_before": 1})
    assert workers_over_time(rows, 2) == "2, from step 7 on 1, from step 13 on 2"
    assert workers_over_time([], 2) == "2"


def test_a_change_is_kept_once_among_the_metrics(tmp_path):
    run = RunDirectory(tmp_path)
    change, loss = {"train/workers": 1, "train/workers_before": 2}, {"train/loss": 1.0}
    rows = [{"step": 2} | loss, {"step": 2} | change, {"step": 4} | loss, {"step": 4} | change]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    MetricsFile(run, 4).close(None)
    assert run.history() == rows[:-1]  # whoever goes on after step 4 says whether it is a change
    MetricsFile(run, 3).close(None)
    assert run.history() == rows[:2]


def test_a_notice_asks_for_two_checkpoints():
    notice = PreemptionNotice()
    assert not notice.due(None, now=0)
    assert [notice.due(120, now) for now in (0, 1, 120 - LEAD - 1, 120 - LEAD, 119)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert [notice.due(150, now) for now in (119, 121, 136)] == [True, False, True]  # another node, later
    assert [notice.due(180, now) for now in (160, 166, 179)] == [True, False, False]  # too near for two
    assert [notice.due(float("inf"), now) for now in (180, 10**6)] == [True, False]


def saved_steps(monkeypatch) -> list[int]:
    """Steps at which checkpoints are begun from now on."""
    saved: list[int] = []
    save = Checkpoints.save

    def counted(self, strategy, progress, *, best):
        saved.append(progress.step)
        save(self, strategy, progress, best=best)

    monkeypatch.setattr(Checkpoints, "save", counted)
    return saved


class Asked:
    """Asks to make way before the third step; nobody ends the ranks, so they go on."""

    def __init__(self) -> None:
        self.looks = 0
        self.held: list[int] = []

    def request(self) -> bool:
        self.looks += 1
        return self.looks == 3

    def hold(self) -> None:
        self.held.append(self.looks)


def test_checkpoints_are_written_when_asked_for_and_before_making_way(tiny_config, monkeypatch):
    saved = saved_steps(monkeypatch)
    config = tiny_config("asked", train={"epochs": 1, "global_batch": 22})
    set_up(config, resume=False)
    looks, way = iter([False, True, False, False, False]), Asked()
    training = Training(config, World.join(CPU), print, save_asked=lambda: next(looks), make_way=way)
    assert complete(training) is not None
    assert saved == [2, 3, 5]
    assert way.held == [3]


def test_fewer_workers_compute_in_chunks_what_all_would(tiny_config):
    """Of two workers that were asked for one is there: all rows are its own, seventeen at a time."""
    model = {"dim": 16, "image": {"kind": "cnn", "width": 8, "blocks": 2}, "text": {"kind": "gru", "embedding": 16}}
    sections = {"model": model, "train": {"epochs": 2, "global_batch": 34, "log_every": 1}}
    runs, trainings = [], []
    for name, cluster in (("alone", {"workers": 1}), ("left", {"workers": 2, "min_workers": 1})):
        config = tiny_config(name, cluster=cluster, **sections)
        runs.append(set_up(config, resume=False))
        trainings.append(Training(config, World.join(CPU), lambda _: None))
        complete(trainings[-1])
    assert [training.rows_at_once for training in trainings] == [None, 17]
    one, other = (run.read_summary() for run in runs)
    assert one["certificate"] == other["certificate"] != ""
    assert [(summary["workers"], summary["resizes"]) for summary in (one, other)] == [(1, 0), (1, 1)]
    ours, theirs = (load_file(run.checkpoints / "last/model.safetensors") for run in runs)
    # AdamW divides by the gradient's own size: see test_strategies.py.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    (event,) = (row for row in read_rows(runs[1].events) if row["event"] == "resized")
    assert event["text"].startswith(
        "2 → 1 workers (cluster.workers=2): step 1 goes on with 34 samples a worker, encoded"
    )
    assert runs[1].history()[0].items() >= {"step": 0, "train/workers": 1, "train/workers_before": 2}.items()
    assert "2, from step 1 on 1 on cpu" in runs[1].report.read_text()


def test_batch_statistics_are_refused_in_one_line(tiny_config, regions):
    sections = {
        "data": {"root": str(regions), "test": None},
        "model": {"image": {"kind": "regions", "features": 24, "mlp": True}},
        "train": {"global_batch": 32},
    }
    line = r"cluster\.min_workers=1: .*BatchNorm1d.* takes statistics over the batch"
    config = tiny_config("norm", **sections, cluster={"workers": 2, "min_workers": 1})
    with pytest.raises(UserError, match=line):
        set_up(config, resume=False)
    set_up(tiny_config("norm", **sections, cluster={"workers": 2}), resume=False)
    with pytest.raises(RuntimeError, match=line):  # as of a run that goes on with fewer
        Training(config, World.join(CPU), print)
