"""The strategies and the number of workers change how a step is computed, not what it is: two and three real ranks."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allpairs.hashes import HASHES, files_in
from allpairs.models import load
from allpairs.models.pieces import read_weights
from distributed.checkpoints import find_usable
from distributed.launch import set_up
from distributed.world import World
from retrieval_eval.run_files import read_rows
from tests.distributed.first_step import WAYS, WAYS_OF, made

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("torchrun_script.py")

# No batch norm and no dropout: their statistics and masks belong to a rank, everything else to the global batch.
PLAIN = {
    "model": {"image": {"kind": "regions", "features": 24}, "text": {"kind": "gru", "embedding": 16}},
    "train": {"epochs": 2, "global_batch": 22},
    "eval": {"every": 1},
}

NCR = {
    "objective": {"name": "triplet_hn"},
    "train": PLAIN["train"] | {"epochs": 3, "recipe": "ncr", "ncr": {"warmup_epochs": 1}},
}
"""Two nets; noisy pairs are left out in the second epoch and train in the third."""


def torchrun(world: int, *paths: Path) -> None:
    """Start `world` ranks of the script."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, str(SCRIPT), *map(str, paths)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def prepared(tiny_config, regions, tmp_path):
    """Lay out a run and return its configuration file, as the driver would."""

    def make(name: str, resume: bool = False, **sections) -> Path:
        data = {"data": {"root": str(regions), "test": None}}
        config = tiny_config(name, **(PLAIN | data | sections))
        return set_up(config, resume=resume).config

    return make


def weights(path: Path) -> dict[str, torch.Tensor]:
    last = path.parent / "checkpoints/last"
    return read_weights(last, "model") | load_file(last / "objective.safetensors")


def largest_difference(one: Path, other: Path) -> float:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max()) for key in ours)


def certificate(path: Path) -> str:
    return json.loads((path.parent / "checkpoints/last/position.json").read_text())["certificate"]


def gradient_norms(path: Path) -> list[float]:
    """AdamW hides constant factors in the gradients, so weights alone would not show a wrong average: the norms do."""
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    return [row["train/gradient_norm"] for row in rows if "train/gradient_norm" in row]


def evaluations(path: Path) -> list[float]:
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    return [row["val/rsum"] for row in rows if "val/rsum" in row]


def step_norms(path: Path) -> dict[str, list[float]]:
    """Norms of weights and of updates, row by row."""
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    names = ("train/parameter_norm", "train/update_norm")
    return {name: [row[name] for row in rows if "train/loss" in row] for name in names}


def assert_same_divisions(*paths: Path) -> None:
    """Runs of `NCR` called the same pairs noisy, some of them, and trained alike with it."""
    first, *others = (load_file(path.parent / "checkpoints/last/division.safetensors") for path in paths)
    assert first["noisy"].any()
    assert not first["noisy"].all()
    for path, division in zip(paths[1:], others, strict=True):
        assert torch.equal(division["noisy"], first["noisy"]), path
        torch.testing.assert_close(division["labels"], first["labels"], atol=1e-3, rtol=0)
        assert gradient_norms(path) == pytest.approx(gradient_norms(paths[0]), rel=1e-3), path
        assert largest_difference(paths[0], path) < 1e-4, path


def test_the_number_of_workers_changes_nothing_but_rounding(prepared):
    one, two, three = (prepared(f"world{world}") for world in (1, 2, 3))
    margins = {"column": {"source": "column", "column": "soft"}, "sam": {"source": "sam"}}
    adaptive = {
        world: [
            prepared(f"{source}{world}", objective={"name": "unified"}, margins=settings)
            for source, settings in margins.items()
        ]
        for world in (1, 2)
    }
    divided = [prepared(f"divided{world}", **NCR) for world in (1, 2, 3)]
    for world, path in ((1, one), (2, two), (3, three)):
        torchrun(world, path, *adaptive.get(world, ()), divided[world - 1])
    assert_same_divisions(*divided)
    for alone, together in zip(adaptive[1], adaptive[2], strict=True):
        assert gradient_norms(together) == pytest.approx(gradient_norms(alone), rel=1e-4)
        assert largest_difference(alone, together) < 1e-4
    assert largest_difference(*adaptive[1]) > 1e-2  # one's margins are not the other's
    assert len(gradient_norms(one)) >= 3
    assert certificate(one) == certificate(two) == certificate(three) != ""
    assert gradient_norms(two) == pytest.approx(gradient_norms(one), rel=1e-4)
    assert gradient_norms(three) == pytest.approx(gradient_norms(one), rel=1e-4)
    start = prepared("untrained", train={"epochs": 1, "global_batch": 22, "stop_after_epochs": 0.4})
    torchrun(1, start)
    assert largest_difference(start, one) > 1e-2  # training moves the weights by far more
    # AdamW divides by the gradient's own size: float32 rounding of 1e-7 becomes steps of 1e-5 where gradients vanish.
    assert largest_difference(one, two) < 1e-4
    assert largest_difference(one, three) < 1e-4


def test_sharded_strategies_compute_what_ddp_computes_and_resume(prepared):
    runs = {name: prepared(name, train=PLAIN["train"] | way) for name, way in WAYS.items()}
    averages = {
        name: prepared(f"average-{name}", train=PLAIN["train"] | WAYS[name] | {"ema_decay": 0.9})
        for name in ("ddp", "zero3", "fsdp2")
    }
    part = prepared("part", train=PLAIN["train"] | WAYS["zero1"] | {"stop_after_epochs": 1})
    # In micro-batches of 4 of each rank's 11 rows.
    in_parts = {
        name: prepared(f"{name}-parts", train=PLAIN["train"] | way | {"micro_batch": 4}) for name, way in WAYS.items()
    }
    divided = [prepared("divided", **NCR)]
    for name in ("zero2", "zero3", "fsdp2"):
        ncr = NCR | {"train": NCR["train"] | {"micro_batch": 4} | WAYS[name]}
        divided.append(prepared(f"divided-{name}", **ncr))
    faulty = {}
    gradients = r"^the gradients are not finite at step 3 \(epoch 1\), though the loss is: rank 1: 2 parameter\(s\) "
    gradients += (
        r"\(encoder\.image\.embedding\.weight, encoder\.image\.embedding\.bias\)\. This step changed no weight, "
    )
    apart = "^the ranks came apart: after step 3 {} differs between ranks 0, 1 .*No checkpoint is written of that; "
    for name, way, said in (
        ("nan_gradient-parts", {"micro_batch": 4}, gradients),
        ("nan_gradient-zero1", {"strategy": "deepspeed", "zero_stage": 1}, gradients),
        ("nan_gradient-zero2", {"strategy": "deepspeed", "zero_stage": 2, "precision": "bf16"}, gradients),
        ("nan_gradient-zero3", WAYS["zero3"], gradients),
        ("nan_gradient-fsdp2", {"strategy": "fsdp2"}, gradients),
        ("nan_gradient-bf16", {"strategy": "fsdp2", "precision": "bf16"}, gradients),
        (
            "bent_weight-zero2",
            {"strategy": "deepspeed", "zero_stage": 2},
            apart.format("encoder.image.embedding.weight"),
        ),
        ("bent_weight-fsdp2", {"strategy": "fsdp2"}, apart.format("objective.log_scale")),
    ):
        settings = PLAIN["train"] | {"checkpoint_every_steps": 1, "compare_every_steps": 1} | way
        faulty[prepared(name, train=settings)] = said
    ddp = runs["ddp"]
    bound = ddp.with_name("scales.bound")
    first = ddp.with_name("first.gradients")
    torchrun(2, bound, first, *faulty, *runs.values(), part, *averages.values(), *in_parts.values(), *divided)
    for path, said in faulty.items():
        check_fault(path, said)
    (bf16,) = (path.parent for path in faulty if path.parent.name == "nan_gradient-bf16")
    masters = read_weights(bf16 / "checkpoints/last", "model")
    assert all(value.dtype == torch.float32 and value.ne(value.bfloat16()).any() for value in masters.values())
    check_gradients([torch.load(first.with_suffix(f".gradients{rank}"), weights_only=True) for rank in (0, 1)])
    assert_same_divisions(*divided)
    for path in averages.values():
        assert largest_difference(averages["ddp"], path) < 1e-4, path
    assert largest_difference(averages["ddp"], ddp) > 1e-3
    found = [json.loads(bound.with_suffix(f".bound{rank}").read_text()) for rank in (0, 1)]
    for one in found:
        check_bounds(one)
    assert all(any(one[way]["masters"] for one in found) for way in ("zero1", "zero2"))
    for path in (*runs.values(), *in_parts.values()):
        assert gradient_norms(path) == pytest.approx(gradient_norms(ddp), rel=1e-4), path
        assert evaluations(path) == pytest.approx(evaluations(ddp)), path
        for name, expected in step_norms(ddp).items():
            assert step_norms(path)[name] == pytest.approx(expected, rel=1e-4), (path, name)
        assert largest_difference(ddp, path) < 1e-4, path
    for name, path in runs.items():
        best, whole = (load(path.parent / folder)[0].state_dict() for folder in ("checkpoints/best", "model"))
        assert all(torch.equal(whole[key], tensor) for key, tensor in best.items())
        assert (path.parent / "model/model.safetensors").exists()
        assert (path.parent / "checkpoints/last/model.safetensors").exists() != (name in ("zero3", "fsdp2"))
    again = prepared("part", resume=True, train=PLAIN["train"] | WAYS["zero1"])
    torchrun(2, again)
    assert largest_difference(runs["zero1"], again) == 0


def check_gradients(ranks: list[dict]) -> None:
    """Each element of each gradient is there once, and is the one that a single process computes.

    But for rounding, which goes with the largest: a CLIP's small word vectors have gradients of up to 76.
    """
    for model, ways in WAYS_OF.items():
        step, pairs = made(model, World.join(torch.device("cpu")))
        step(pairs).loss.backward()
        expected = {name: parameter.grad.flatten() for name, parameter in step.named_parameters()}
        assert len(ranks[0][model]) == 2 * len(ways)
        for way in ranks[0][model]:
            found = {name: torch.full_like(values, torch.nan) for name, values in expected.items()}
            for name, start, values in (piece for rank in ranks for piece in rank[model][way]):
                assert found[name][start : start + len(values)].isnan().all(), (model, way, name)
                found[name][start : start + len(values)] = values
            for name, values in expected.items():
                torch.testing.assert_close(
                    found[name], values, rtol=1e-5, atol=1e-6 * max(1.0, float(values.abs().max())),
                    msg=lambda said, what=f"{model}, {way}, {name}": f"{what}: {said}",
                )  # fmt: skip


def check_bounds(found: dict) -> None:
    """A scale and a bias driven to their bounds come back at the same steps whatever the strategy: one number each."""
    expected = found["ddp"]["noted"]
    at_bound, coming_back, back = expected
    assert at_bound["scale"] == pytest.approx(100)
    assert back["scale"] < coming_back["scale"] < 99
    assert found.keys() == WAYS.keys()
    for way, one in found.items():
        for here, there in zip(one["noted"], expected, strict=True):
            assert here == pytest.approx(there, rel=1e-4), way
        assert one["losses"][0] == pytest.approx(one["losses"][1], rel=1e-5), way
        assert all(one["masters"])
        copying, gathering = one["collectives"]
        assert copying == 0, f"{way}: what a checkpoint takes is gathered from nowhere"
        assert (gathering > 0) == (way in ("zero3", "fsdp2")), way
        saved = {"scale": math.exp(one["saved"]["log_scale"]), "bias": one["saved"]["bias"]}
        assert saved == pytest.approx(one["noted"][-1], rel=1e-12), way


def test_an_elastic_run_goes_on_with_one_worker_of_two_under_every_strategy(prepared):
    """The one that is left encodes its rows in chunks of the usual share, and ends where both would have."""
    cluster, train = {"workers": 2, "min_workers": 1}, {"epochs": 2, "global_batch": 33}
    whole = prepared("whole", train=train)
    ways = {name: train | way for name, way in WAYS.items()}
    both = [prepared(name, train=way | {"stop_after_epochs": 1}, cluster=cluster) for name, way in ways.items()]
    torchrun(2, whole, *both)
    left = [prepared(name, resume=True, train=way, cluster=cluster) for name, way in ways.items()]
    torchrun(1, *left)
    for path in left:
        (resized,) = (row["text"] for row in read_rows(path.parent / "events.jsonl") if row["event"] == "resized")
        assert "step 3 goes on with 33 samples a worker, encoded 17 at a time" in resized, path
        assert certificate(path) == certificate(whole) != "", path
        assert gradient_norms(path) == pytest.approx(gradient_norms(whole), rel=1e-4), path
        assert evaluations(path) == pytest.approx(evaluations(whole)), path
        assert largest_difference(whole, path) < 1e-4, path


def test_a_checkpoint_is_resumed_by_another_strategy_and_another_number_of_workers(prepared):
    """Each way begins a run of two epochs, another goes on after the first: all end as one that nobody stopped."""
    train = PLAIN["train"] | {"stop_after_epochs": 1, "checkpoint_every_steps": 2}
    whole = prepared("undisturbed")
    first = {name: prepared(f"{name}-first", train=train | way) for name, way in WAYS.items()}
    torchrun(2, whole, *first.values())
    for number, path in enumerate(first.values()):
        assert_every_damage_is_seen(path.parent / "checkpoints")
        file = sorted((path.parent / "checkpoints/last").rglob("*.safetensors"))[-1 - number % 2]
        file.write_bytes(file.read_bytes()[:-9])  # so each goes on from the checkpoint before, which all ranks agree on
    then = {"ddp": "zero1", "zero1": "zero3", "zero2": "ddp", "zero3": "fsdp2", "fsdp2": "zero2"}
    second = {
        name: prepared(f"{name}-first", resume=True, train=PLAIN["train"] | WAYS[other]) for name, other in then.items()
    }
    torchrun(3, *second.values())
    for name, path in second.items():
        assert gradient_norms(path)[-1] == pytest.approx(gradient_norms(whole)[-1], rel=1e-3), name
        assert largest_difference(whole, path) < 2e-4, name
        assert certificate(path) == certificate(whole), name
        (note,) = (row["text"] for row in read_rows(path.parent / "events.jsonl") if row["event"] == "note")
        assert note.startswith("checkpoint step-00000003 is not what was written ("), note
        assert note.endswith("going on from the one before, step-00000002"), note


def assert_every_damage_is_seen(folder: Path) -> None:
    """A file of the last checkpoint cut, or a byte of it flipped, at each twentieth: the one before, in one line."""
    links = {path.name: path.readlink() for path in folder.iterdir() if path.is_symlink()}
    last, alone = folder / "last", World.join(torch.device("cpu"))
    assert any(name.startswith("optimizer/") for name in files_in(last))
    for path in [last.resolve() / name for name in (*files_in(last), HASHES)]:
        content = path.read_bytes()
        for place in sorted({len(content) * part // 20 for part in range(20)}):
            for damaged in (content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]):
                path.write_bytes(damaged)
                said: list[str] = []
                found = find_usable(folder, alone, said.append)
                assert found is not None
                assert found.folder.name == "step-00000002", (path, place)
                assert len(said) == 1, (path, place)
                assert "\n" not in said[0]
                for link, target in links.items():
                    (folder / link).unlink(missing_ok=True)
                    (folder / link).symlink_to(target)
        path.write_bytes(content)
    found = find_usable(folder, alone, print)
    assert found is not None
    assert found.folder.name == "step-00000003"


def test_what_goes_wrong_on_one_rank_ends_all_with_one_line(prepared):
    """The same in real workers of Ray: test_ray_train.py."""
    alike = "on ranks 0, 2, .* on rank 1; all must have the same$"
    apart = r"^the ranks came apart: after step 3 encoder\.image\.embedding\.weight differs on rank 1 "
    said = {
        "nan_weights": r"^the loss is nan at step 3 \(epoch 1\): rank 1: 7 of 7 image embeddings are not",
        "another_rate": rf"^the ranks do not train alike: optimizer\.lr is 0\.01 {alike}",
        "another_schedule": rf"^the ranks do not train alike: the learning rate of step 3 is 0\.0\d+ {alike}",
        "another_decay": rf"^the ranks do not train alike: weight_decay of parameter group 0 is 0\.\d+ {alike}",
        "broken_shard": r"^rank 1: \S+/cut/\S+\.tar: item-\d+: the shard ends inside this sample: it was cut off",
        "bent_weight": rf"{apart}\(2 of 15 parameters do\)\. No checkpoint is written of that; there is none yet",
    }
    of_average = {"train": PLAIN["train"] | {"ema_decay": 0.9, "compare_every_steps": 1}}
    paths = {name: prepared(name, **(of_average if name == "bent_weight" else {})) for name in said}
    torchrun(3, *paths.values())
    for name, path in paths.items():
        ends = [path.with_suffix(f".stopped{rank}") for rank in range(3)]
        first, *others = (end.read_text() for end in ends)
        assert re.search(said[name], first), (name, first)
        assert "\n" not in first
        assert others == [first] * 2
        began = (path.parent / "fault").stat().st_mtime
        assert max(end.stat().st_mtime for end in ends) - began < 20
        assert not (path.parent / "checkpoints").exists()


def check_fault(path: Path, said: str) -> None:
    """Rank 1's fault in step 3 ended both ranks with one line; the weights are those of the checkpoint of step 2."""
    first, other = (path.with_suffix(f".stopped{rank}").read_text() for rank in (0, 1))
    assert re.search(said, first), (path, first)
    assert other == first
    assert "--resume auto goes on from step 2's" in first
    last = path.parent / "checkpoints/last"
    assert last.readlink().name == "step-00000002"
    left, kept = read_weights(path.parent, "left"), read_weights(last, "model")
    assert left.keys() == kept.keys()
    assert all(torch.equal(left[name], kept[name]) for name in kept) == ("nan_gradient" in path.parent.name)
