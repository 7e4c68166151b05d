"""`train.recipe: ncr` as a user runs it: on pairs that do not match, stopped and resumed, at any world size."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from allpairs import models
from allpairs.errors import UserError
from distributed.config import validate
from distributed.data.sources.shuffled import caption_sources
from distributed.data.writer import Sample, write_split
from distributed.embed import embed
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.progress import line
from distributed.world import World
from retrieval_eval.evaluate import evaluate
from tests.distributed.test_loop import CPU, assert_same_state, rows, train

NCR = {"epochs": 4, "recipe": "ncr", "ncr": {"warmup_epochs": 1, "noisy_after": 0.4}, "log_every": 1}
TRIPLET = {"name": "triplet_hn", "margin": 0.2}


def division_of(run):
    return load_file(run.checkpoints / "last" / "division.safetensors")


@pytest.fixture
def whole(tiny_config):
    """A run that nothing stopped."""
    run, _, _ = train(tiny_config("whole", train=NCR, objective=TRIPLET))
    return run


def test_stopping_and_resuming_ends_bit_identical(tiny_config, whole):
    def part(resume, **settings):
        return train(tiny_config("part", train=NCR | settings, objective=TRIPLET), resume=resume)[0]

    # 103 images in batches of 22, 5 steps an epoch: stopped in the warm-up, at its end, with the first division and
    # with one under which noisy pairs train.
    for number, stop in enumerate((0.4, 1, 1.6, 3.4)):
        part(number > 0, stop_after_epochs=stop)
    run = part(True)
    assert_same_state(whole, run)
    for key in ("train/loss", "train/clean_pairs", "train/mean_label", "val/rsum"):
        assert rows(whole, key)
        assert {step: value for step, value in rows(run, key).items() if step in rows(whole, key)} == rows(whole, key)
    assert all(torch.equal(value, division_of(run)[name]) for name, value in division_of(whole).items())


def test_every_command_takes_both_nets_as_one_model(tiny_config, tmp_path):
    run, summary, _ = train(tiny_config(train=NCR, objective=TRIPLET, data={"epoch_unit": "captions"}))
    encoder, _ = models.load(run.checkpoints / "best")
    first, second = encoder.members
    assert not torch.equal(*(next(net.parameters()) for net in (first, second)))
    embed(run=run.root, split="test", out=tmp_path / "out")
    images, captions = (np.load(tmp_path / "out" / f"{side}.npy") for side in ("images", "captions"))
    assert images.shape[1] == 32  # twice model.dim
    np.testing.assert_array_equal(images, np.load(run.embeddings("test") / "images.npy"))
    ids = [pq.read_table(tmp_path / "out" / f"{side}.parquet")["id"].to_numpy() for side in ("images", "captions")]
    measured = evaluate(*(torch.from_numpy(array.copy()) for array in (images, captions, *ids)))
    assert measured.metrics["rsum"] == pytest.approx(summary["test/rsum"])
    noisy = pq.read_table(run.noisy_pairs).to_pylist()
    last = [row for row in run.history() if "train/clean_pairs" in row][-1]
    assert len(noisy) == 206 - last["train/clean_pairs"]
    assert 0 < last["train/mean_label"] <= 1
    assert f"clean {last['train/clean_pairs']:,}" in line(last)
    assert [row["posterior"] for row in noisy] == sorted(row["posterior"] for row in noisy)
    assert all(row["posterior"] <= 0.5 for row in noisy)
    assert run.report.stat().st_size > 100


def attributes(root, fraction: float) -> np.ndarray:
    """Write items of three attributes with eight values each, and captions that name them; say which were shuffled."""
    draw = np.random.default_rng(0)
    looks = draw.normal(size=(3, 8, 24))
    items = np.stack(np.unravel_index(draw.permutation(512), (8, 8, 8)), axis=1)
    for split, members in (("val", items[:100]), ("train", items[100:])):
        captions = [" ".join(f"{name}{value}" for name, value in zip("abc", item, strict=True)) for item in members]
        if split == "train":
            true, captions = captions, [captions[i] for i in caption_sources(len(captions), fraction=fraction, seed=0)]
        samples = []
        for number, (item, caption) in enumerate(zip(members, captions, strict=True)):
            regions = np.stack([looks[place, value] for place, value in enumerate(item)])
            stream = io.BytesIO()
            np.save(stream, (regions + 0.5 * draw.normal(size=regions.shape)).astype(np.float32))
            samples.append(Sample(f"{split}-{number}", "npy", stream.getvalue(), [caption]))
        write_split(root / split, samples, name="attributes", split=split, source={}, kind="regions")
    return np.array([one != other for one, other in zip(true, captions, strict=True)])


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.6])
def test_it_finds_the_shuffled_pairs_and_beats_plain_hard_negatives(fraction, tmp_path):
    broken = attributes(tmp_path, fraction)

    def trained(name, **settings):
        config = validate(
            {
                "run": {"name": name, "dir": str(tmp_path / "runs")},
                "data": {"root": str(tmp_path), "test": None},
                "model": {
                    "dim": 24,
                    "image": {"kind": "regions", "features": 24},
                    "text": {"kind": "gru", "embedding": 16, "word_dropout": 0.0},
                },
                "objective": TRIPLET,
                "optimizer": {"lr": 5e-3, "warmup_epochs": 0},
                "train": {"epochs": 10, "global_batch": 64, "log_every": 50} | settings,
                "tracking": {"wandb": "disabled"},
            }
        )
        run = set_up(config, resume=False)
        complete(Training(config, World.join(CPU), lambda _: None))
        return run, json.loads(run.summary.read_text())["val/best_rsum"]

    _, alone = trained("plain", triplet_warmup_epochs=4)
    run, both = trained("ncr", recipe="ncr", ncr={"warmup_epochs": 4})
    assert both > alone + 30
    called = {row["key"] for row in pq.read_table(run.noisy_pairs).to_pylist()}
    found = np.array([f"train-{number}" in called for number in range(len(broken))])
    assert broken[found].mean() > 0.9  # precision
    assert found[broken].mean() > 0.4  # recall


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"objective": {"name": "vlc"}},
            "objective.name=vlc has no margin for each pair; accepted with it: rsp, ssp, triplet",
        ),
        (
            {"objective": {"name": "triplet_hn", "margin": 0}},
            "objective.margin=0.0: train.recipe=ncr scales the margin",
        ),
        ({"train": {"triplet_warmup_epochs": 2}}, "accepted is 0, and train.ncr.warmup_epochs=2"),
        ({"train": {"epochs": 5}}, "train.ncr.warmup_epochs=5: of train.epochs=5 none would be left"),
        ({"margins": {"source": "sam"}}, "margins.source=sam: train.recipe=ncr makes each pair's margin itself"),
        ({"model": {"init_from": "runs/x"}}, "model.init_from='runs/x': the two nets of train.recipe=ncr begin with"),
        ({"train": {"ncr": {"treshold": 0.4}}}, "train.ncr.treshold: unknown key"),
        ({"train": {"recipe": "mcr"}}, "train.recipe='mcr' is not accepted: input should be 'plain' or 'ncr'"),
    ],
)
def test_mistakes_are_one_line(sections, message, tiny_config):
    train_section = {"recipe": "ncr", "epochs": 9} | sections.get("train", {})
    with pytest.raises(UserError) as caught:
        tiny_config(**({"objective": TRIPLET} | sections | {"train": train_section}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
