"""The training loop in this process, without Ray: learning, resuming, refusing."""

import json
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allpairs.errors import UserError
from distributed.average import Average
from distributed.data import TrainReader
from distributed.data.writer import Sample, write_split
from distributed.finish import complete
from distributed.interval import Collapse
from distributed.launch import Result, set_up
from distributed.loop import Training
from distributed.progress import collapsing, line, step_times
from distributed.run_directory import RunDirectory
from distributed.summary import summary_lines, summary_table
from distributed.world import Stopped, World

CPU = torch.device("cpu")


def train(config, *, resume=False):
    """Train in this process; return the run, the summary and what was reported."""
    run = set_up(config, resume=resume)
    reported = []
    summary = complete(Training(config, World.join(CPU), reported.append))
    return run, summary, reported


def state(run: RunDirectory):
    """Everything a checkpoint holds, as plain values: weights, scale, optimiser moments, position."""
    folder = run.checkpoints / "last"
    tensors = {}
    for name in ("model", "objective", "optimizer/rank-00000"):
        tensors |= load_file(folder / f"{name}.safetensors")
    position = json.loads((folder / "position.json").read_text())
    position.pop("train_seconds")
    return tensors, position


def assert_same_state(one: RunDirectory, other: RunDirectory):
    (tensors, position), (others, other_position) = state(one), state(other)
    assert position == other_position
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def rows(run: RunDirectory, key: str):
    return {row["step"]: row[key] for row in run.history() if key in row}


EVERY_KIND = [
    {"name": "nt_xent_hn", "tau": 20},
    {"name": "ssp"},
    {"name": "rsp", "coefficients": [0, 1, 0.5]},
    {"name": "unified", "weighting": "rsp", "coefficients": [1, 0.2, 0]},
    {"name": "goal", "triplet": "nca", "pair": "sig_ms", "margin": None},
]
OVER_SETS = [
    {"name": "circle", "scale": 64},
    {"name": "binomial_deviance"},
    {"name": "lifted"},
    {"name": "multi_similarity"},
    {"name": "smooth_ap", "temperature": 0.05},
]


@pytest.mark.parametrize("objective", EVERY_KIND + OVER_SETS, ids=lambda objective: objective["name"])
def test_every_kind_of_objective_trains(objective, tiny_config):
    captions = 3 if objective in OVER_SETS else 1
    config = tiny_config(train={"epochs": 1}, objective=objective, data={"captions_per_image": captions})
    run, summary, _ = train(config)
    losses = rows(run, "train/loss")
    assert all(np.isfinite(loss) for loss in losses.values())
    assert len(set(losses.values())) == len(losses) > 1
    assert summary["samples_seen"] == 103
    assert all(-1 <= similarity <= 1 for similarity in rows(run, "train/positive_similarity").values())


def test_hard_negatives_warm_up_on_all_negatives(tiny_config):
    def losses(name, epochs, warmup, **arguments):
        objective = {"name": name, "margin": 0.3, **arguments}
        train_section = {"epochs": 3, "stop_after_epochs": epochs, "triplet_warmup_epochs": warmup, "log_every": 1}
        run, _, _ = train(tiny_config(f"{name}{epochs}{warmup}", train=train_section, objective=objective))
        return list(rows(run, "train/loss").values())

    warmed, hinges, hardest = losses("triplet_hn", 2, 1), losses("triplet", 1, 0), losses("triplet_hn", 1, 0)
    assert warmed[: len(hinges)] == hinges
    assert hardest != hinges
    # Of the second epoch, each loss is one hinge per anchor: no more than margin + 2 in each direction.
    assert all(loss < 2 * 2.3 for loss in warmed[len(hinges) :])
    assert max(hinges) > 2 * 2.3
    assert losses("goal", 1, 1, pair="sig") == hinges


def test_a_run_learns_and_leaves_everything(tiny_config):
    config = tiny_config(train={"epochs": 12})
    run, summary, reported = train(config)
    recall = rows(run, "val/rsum")
    assert max(recall.values()) > 3 * 2 * 100 * (1 + 5 + 10) / 25  # three times chance: k of 25, both directions
    assert summary["test/rsum"] > 0
    assert summary["samples_seen"] == 12 * 103
    assert len(reported) == 12
    assert reported[-1].keys() >= {"epoch", "val/rsum", "val/best_rsum", "val/loss"}
    losses = list(rows(run, "train/loss").values())
    assert losses[-1] < 0.8 * losses[0]
    assert set(rows(run, "train/batch").values()) == {22, 15}  # the row of an epoch's last batch alone says so
    wanted = {
        "train/positive_similarity",
        "train/hardest_negative_similarity",
        "train/samples_per_second",
        "train/scale",
    }
    assert wanted <= run.history()[0].keys()
    assert run.read_summary() == summary
    for path in (run.config, run.provenance, run.report, run.embeddings("test") / "images.npy"):
        assert path.stat().st_size > 100
    best = json.loads((run.checkpoints / "best" / "position.json").read_text())
    assert best["best_rsum"] == max(recall.values())


# 103 images in batches of 22: 5 steps, the last one of 15; 1.25 epochs is in the middle of the second.
@pytest.mark.parametrize("stop", [1, 1.25])
def test_stopping_and_resuming_ends_bit_identical(tiny_config, stop):
    whole, _, _ = train(tiny_config("whole"))
    part, summary, _ = train(tiny_config("part", train={"stop_after_epochs": stop}))
    assert summary is None
    assert not part.summary.exists()
    part, summary, _ = train(tiny_config("part"), resume=True)
    assert summary is not None
    assert_same_state(whole, part)
    for key in ("val/rsum", "val/loss", "test/rsum"):
        assert rows(whole, key) == rows(part, key)


def test_a_crash_between_checkpoints_repeats_no_row(tiny_config):
    whole, _, _ = train(tiny_config("whole"))
    config = tiny_config("crashed", train={"checkpoint_every_steps": 4})
    run = set_up(config, resume=False)
    training = Training(config, World.join(CPU), lambda _: None)
    update = training.strategy.update

    def failing(factor):
        if training.progress.step == 7:
            raise RuntimeError("power cut")
        return update(factor)

    training.strategy.update = failing
    with pytest.raises(RuntimeError, match="power cut"):
        training.run()
    # The epoch's end, or the one before where that was still being written.
    assert json.loads((run.checkpoints / "last" / "position.json").read_text())["step"] in (4, 5)
    train(config, resume=True)
    assert_same_state(whole, run)
    steps = [row["step"] for row in run.history() if "train/loss" in row]
    assert steps == sorted(set(steps))
    assert rows(run, "val/loss") == rows(whole, "val/loss")


def test_a_non_finite_loss_stops_before_the_update(tiny_config):
    config = tiny_config()
    run = set_up(config, resume=False)
    training = Training(config, World.join(CPU), lambda _: None)
    with torch.no_grad():
        next(training.encoder.parameters()).fill_(float("nan"))
    before = {
        name: value.clone() for name, value in training.strategy.step.state_dict().items() if "running" not in name
    }
    with pytest.raises(Stopped, match=r"the loss is nan at step 1 \(epoch 1\): rank 0: 22 of 22 image embeddings"):
        training.run()
    after = training.strategy.step.state_dict()
    assert all(
        torch.equal(value.nan_to_num(), after[name].nan_to_num())
        for name, value in before.items()
        if "num_batches" not in name
    )
    assert training.progress.step == 0
    assert not run.checkpoints.exists()


def test_too_many_bad_samples_stop_the_run(tiny_config, tmp_path, tiny_samples):

    good = tiny_samples(held_out=False)
    broken = [Sample(f"broken-{i}", "png", b"\x89PNG\r\n\x1a\n nothing more", ["a broken picture"]) for i in range(10)]
    write_split(tmp_path / "train", good + broken, name="broken", split="train", source={})
    config = tiny_config(data={"train": str(tmp_path / "train"), "max_bad_fraction": 0.05})
    with pytest.raises(Stopped, match=r"rank 0: unusable samples: .*above data\.max_bad_fraction=0\.05"):
        train(config)
    tolerant = tiny_config("tolerant", data={"train": str(tmp_path / "train"), "max_bad_fraction": 0.2})
    _, summary, _ = train(tolerant)
    assert summary["samples_seen"] == 3 * 113


def test_dropped_samples_are_counted_below_the_limit_and_over_a_restart(tiny_config, tmp_path, tiny_samples):
    broken = [Sample(f"broken-{i}", "png", b"\x89PNG\r\n\x1a\n nothing more", ["a broken picture"]) for i in range(3)]
    for split in ("train", "test"):
        content = tiny_samples(held_out=split == "test") + broken
        write_split(tmp_path / split, content, name="broken", split=split, source={})
    data = {split: str(tmp_path / split) for split in ("train", "test")} | {"max_bad_fraction": 0.2}
    counted = {"train/dropped/undecodable_image": 9, "test/dropped/undecodable_image": 3}
    run, summary, _ = train(tiny_config(data=data, train={"checkpoint_every_steps": 1}))
    assert {name: value for name, value in summary.items() if "/dropped/" in name} == counted
    measured = rows(run, "train/dropped/undecodable_image")
    assert list(measured.values()) == sorted(measured.values())
    assert measured[max(measured)] == 9
    page = run.report.read_text()
    assert "train: 9 undecodable image; test: 3 undecodable image" in page
    assert "3 of 28 pictures of test are in train too (broken-0 = broken-0" in page
    result = Result(run.history()[-1] | summary | {"val/best_epoch": 1}, run.root, finished=True, step=1)
    assert "dropped      train: 9 undecodable image; test: 3 undecodable image\n" in summary_lines(result, 1.0)

    settings = {"log_every": 100}  # a restart between two rows loses none
    train(tiny_config("cut", data=data, train=settings | {"stop_after_epochs": 1.5}))
    _, resumed, _ = train(tiny_config("cut", data=data, train=settings), resume=True)
    assert {name: value for name, value in resumed.items() if "/dropped/" in name} == counted


def test_a_picture_in_two_splits_is_told_before_training(tiny_config, tmp_path, tiny_samples):
    leaked = tiny_samples(held_out=True) + tiny_samples(held_out=False)[:2]
    write_split(tmp_path / "test", leaked, name="leaked", split="train", source={})
    told: list[str] = []
    set_up(tiny_config(data={"test": str(tmp_path / "test")}), resume=False, tell=told.append)
    (line,) = [line for line in told if "of test are in train too" in line]
    assert line.startswith(f"data: 2 of {len(leaked)} pictures of test are in train too (")


def test_steps_schedule_and_bf16_train(tiny_config):
    config = tiny_config(
        objective={"name": "triplet_hn", "margin": 0.1},
        optimizer={"schedule": "step", "decay_epochs": [1]},
        train={"precision": "bf16"},
    )
    run, summary, _ = train(config)
    assert summary["val/best_rsum"] > 0
    assert np.isfinite(list(rows(run, "train/loss").values())).all()


def test_a_taken_name_is_refused_and_resuming_checks_the_settings(tiny_config):
    config = tiny_config(train={"stop_after_epochs": 1})
    run, _, _ = train(config)
    with pytest.raises(UserError, match=r"exists but is not finished; --resume continues it"):
        set_up(config, resume=False)
    changed = tiny_config(optimizer={"lr": 0.5})
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.01 before, 0\.5 now"):
        set_up(changed, resume=True)
    train(tiny_config(), resume=True)
    with pytest.raises(UserError, match=r"is finished\. Choose another run\.name"):
        set_up(tiny_config(), resume=False)
    with pytest.raises(UserError, match=r"there is no run .*runn to resume; did you mean 'run'"):
        set_up(tiny_config("runn"), resume=True)
    assert run.read_summary()


def test_data_that_do_not_fit_are_refused_before_anything_starts(tiny_config, tiny):
    with pytest.raises(UserError, match=r"data\.val: .*vall.*did you mean 'val'"):
        set_up(tiny_config(data={"val": str(tiny / "vall")}), resume=False)
    with pytest.raises(UserError, match=r"data\.train: .* holds images, but model\.image\.kind=regions"):
        set_up(tiny_config(model={"image": {"kind": "regions"}}), resume=False)
    with pytest.raises(UserError, match=r"train\.global_batch=500 is larger than data\.train, which has 103 images"):
        set_up(tiny_config(train={"global_batch": 500}), resume=False)


def test_a_run_whose_embeddings_fall_together_is_called_collapsing_and_one_that_learns_is_not(tiny_config):
    schedule = {"warmup_epochs": 0, "schedule": "constant"}
    hard = {"name": "triplet_hn", "margin": 0.2}
    falls, *_ = train(tiny_config("falls", objective=hard, optimizer=schedule | {"lr": 0.1}, train={"epochs": 3}))
    called = [row for row in falls.history() if "val/collapsing" in row]
    assert [row["epoch"] for row in called] == [2, 3]
    said = collapsing(called[0], advice=True)
    assert "hardest negatives stayed above the positives" in said
    assert "train.triplet_warmup_epochs=1" in said
    assert "What helps" not in collapsing(called[0], advice=False)
    learns, *_ = train(tiny_config("learns", objective={"name": "unified"}, optimizer=schedule, train={"epochs": 3}))
    assert rows(learns, "val/collapsing") == {}


def test_collapse_needs_a_whole_epoch_above_and_chance():
    above = {"train/positive_similarity": 0.5, "train/hardest_negative_similarity": 0.6}
    below = {"train/positive_similarity": 0.6, "train/hardest_negative_similarity": 0.5}
    chance = 2 * (0.1 + 0.5 + 1.0)  # of 1,000 images, in percent
    for given, rsum, expected in [
        ([above, above], chance, True),
        ([above, below], chance, False),
        ([above, above], 3 * chance + 0.1, False),
        ([], chance, False),
    ]:
        collapse = Collapse()
        for row in given:
            collapse.add(row)
        assert collapse.found(rsum, 1000) is expected
    assert not collapse.found(chance, 1000), "rows are judged once"


def test_a_budget_in_samples_ends_inside_an_epoch_and_measures_there(tiny_config):
    # 103 images in batches of 22: four of 22 and one of 15 an epoch; 150 samples are one epoch and 47 more.
    config = tiny_config("samples", train={"samples": 150, "epochs": 1000}, eval={"every_steps": 3})
    run, summary, reported = train(config)
    assert summary["step"] == 5 + 3
    assert summary["samples_seen"] == 103 + 66
    assert [row["step"] for row in run.history() if "val/best_rsum" in row] == [3, 6, 8]
    assert [round(row["epoch"], 3) for row in reported] == [
        round(66 / 103, 3),
        round(1 + 22 / 103, 3),
        round(1 + 66 / 103, 3),
    ]
    assert json.loads((run.checkpoints / "last/position.json").read_text())["sample"] == 66
    assert RunDirectory(config.run_dir).read_summary()["val/best_epoch"] in {row["epoch"] for row in reported}


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved_and_resumes_exactly(tiny_config):
    def config(name, **more):
        return tiny_config(name, train={"ema_decay": 0.9, "checkpoint_every_steps": 1, "epochs": 2, **more})

    whole, *_ = train(config("whole"))
    last = whole.checkpoints / "last"
    average, trained = load_file(last / "model.safetensors"), load_file(last / "trained.safetensors")
    assert average.keys() == trained.keys()
    assert [name for name in average if not torch.equal(average[name], trained[name])]

    # The same run, its weights written down after each step and averaged by the formula.
    seen = []
    update = Average.update

    def noted(self, encoder):
        seen.append({name: value.detach().double().clone() for name, value in encoder.named_parameters()})
        update(self, encoder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Average, "update", noted)
        patch.setattr(Average, "__init__", _noting_first(seen))
        train(config("again"))
    expected = seen[0]
    for n, after in enumerate(seen[1:]):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = {name: decay * value + (1 - decay) * after[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(average[name].double(), value, rtol=1e-5, atol=1e-6)

    train(config("parts", stop_after_epochs=0.6))
    parts, *_ = train(config("parts"), resume=True)
    assert_same_state(whole, parts)
    for name in ("model.safetensors", "trained.safetensors"):
        one, other = (load_file(run.checkpoints / "last" / name) for run in (whole, parts))
        assert [key for key in one if not torch.equal(one[key], other[key])] == []


def _noting_first(seen):
    begin = Average.__init__

    def init(self, encoder, decay, steps):
        seen.append({name: value.detach().double().clone() for name, value in encoder.named_parameters()})
        begin(self, encoder, decay, steps)

    return init


def test_a_row_says_where_the_time_went(tiny_config, monkeypatch):
    following = TrainReader.batches

    def slow(self, position):
        for batch in following(self, position):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(TrainReader, "batches", slow)
    began = time.perf_counter()
    run, *_ = train(tiny_config("times", train={"epochs": 1, "log_every": 1}))
    took = 1000 * (time.perf_counter() - began)
    trained = 1000 * json.loads((run.checkpoints / "last/position.json").read_text())["train_seconds"]
    steps = [row for row in run.history() if "train/loss" in row]
    parts = ("read", "copy", "encode", "loss", "agree", "backward", "sync", "optimizer")
    assert all(row["train/ms_read"] >= 50 for row in steps)
    assert all(min(row[f"train/ms_{part}"] for part in parts) > 0 for row in steps)
    within = sum(row[f"train/ms_{part}"] for row in steps for part in parts)
    other = sum(row["train/ms_other"] for row in steps)
    assert within < trained < took
    assert within + other == pytest.approx(trained, rel=1e-6)
    assert other < 0.2 * trained
    given = dict.fromkeys((key for key in steps[0] if key.startswith("train/ms_")), 0.0)
    given |= {"train/ms_read": 30.0, "train/ms_encode": 50.0, "train/ms_optimizer": 20.0}
    shown = line(steps[0] | given)
    assert shown.endswith("waiting for data 30%")
    assert "waiting" not in line(steps[0] | given | {"train/ms_read": 0.1})
    assert step_times(given) == "100 ms a step: read 30% · encode 50% · optimizer 20%"
    assert step_times(given | {"train/gpu_gb": 3.21}).endswith(" · GPU 3.2 GB")
    assert step_times({"val/rsum": 1.0}) == ""
    # The last row of a run without data.test: measured under the best checkpoint, which it is not compared with.
    assert line({"step": 9, "epoch": 3.0, "val/i2t/r1": 5.0, "val/rsum": 147.04}) == "val RSUM 147.0"


def test_recalls_by_faiss_are_the_counted_ones(tiny_config, monkeypatch):
    """The same run with either engine: the same recalls in every row, and who found them in all that is shown."""
    config = tiny_config("searched", train={"epochs": 1}, eval={"engine": "faiss"})
    run, summary, reported = train(config)
    other, _, _ = train(tiny_config("counted", train={"epochs": 1}))
    for split in ("val", "test"):
        for way in ("i2t", "t2i"):
            for name in ("r1", "r5", "r10", "average_recall", "map5"):
                key = f"{split}/{way}/{name}"
                assert rows(run, key) == rows(other, key) != {}
            assert rows(run, f"{split}/{way}/mrr") == {}
            assert rows(other, f"{split}/{way}/mrr") != {}
        assert set(rows(run, f"{split}/engine").values()) == {"faiss (faiss-cpu, flat)"}
        assert set(rows(other, f"{split}/engine").values()) == {"exact"}
        assert set(rows(run, f"{split}/same_rank").values()) == {100}
    assert reported[-1]["val/engine"] == summary["test/engine"] == "faiss (faiss-cpu, flat)"
    assert "  by faiss (faiss-cpu, flat)" in line(run.history()[-2])
    assert "which tells ranks up to" in run.report.read_text()
    shown = []
    for each in (run, other):
        result = Result(each.history()[-1] | each.read_summary(), each.root, finished=True, step=1)
        shown.append(([column.header for column in summary_table(result).columns], summary_lines(result, 1.0)))
    (searched, said), (counted, nothing) = shown
    assert [name for name in counted if name not in searched] == ["median", "mean"]
    assert "\nrecalls by   faiss (faiss-cpu, flat)\n" in said
    assert "recalls by" not in nothing
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        UserError, match=r"^eval.engine=faiss needs FAISS \(.*; install the extra faiss-cpu or faiss-gpu"
    ):
        set_up(tiny_config("missing", eval={"engine": "faiss"}), resume=False)
    assert not (run.root.parent / "missing").exists()
