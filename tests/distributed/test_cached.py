"""Encoding in chunks gives the whole batch's gradients, in float64, with dropout, in worlds 1 to 3; and trains."""

import json
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing as mp

from allpairs.errors import UserError
from allpairs.models import DualSpec, GruSpec, RegionsSpec, build, skeleton
from allpairs.objectives import make
from distributed.cached import CachedStep, chunks_of, refuse_batch_statistics
from distributed.config import validate
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.step import Pairs, TrainStep
from distributed.strategies.ddp import DataParallel
from distributed.world import World

REGIONS = DualSpec(image=RegionsSpec(features=6), text=GruSpec(embedding=5, word_dropout=0.4), dim=8)
ROWS, WORDS = 11, 9


def pairs(rows: int, captions: int = 1) -> Pairs:
    """The whole batch: ids repeat once, so that masks matter."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.arange(rows)
    ids[-1] = ids[0]
    lengths = torch.randint(2, 6, (rows * captions,), generator=draw)
    return Pairs(
        torch.randn(rows, 4, 6, generator=draw, dtype=torch.float64),
        torch.randint(1, WORDS, (rows * captions, 6), generator=draw),
        lengths,
        ids,
        ids.repeat_interleave(captions),
    )


def step_of(objective: dict, group=None) -> TrainStep:
    torch.manual_seed(3)
    encoder = build(REGIONS, WORDS).double().train()
    return TrainStep(encoder, make(**objective).double(), group, "fp32")


def gradients(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in step.named_parameters() if value.grad is not None}


def at_once(step: TrainStep, batch: Pairs, bounds: list[int], captions: int) -> torch.Tensor:
    """The same loss with one graph over all chunks: their dropout is drawn chunk by chunk as well."""
    torch.manual_seed(11)
    parts = []
    for first, last in pairwise(bounds):
        parts.append(step.encode(batch.of_rows(slice(first, last), slice(first * captions, last * captions))))
    images, texts = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return step.loss(images, texts, batch)


@pytest.mark.parametrize(
    ("objective", "captions"),
    [
        ({"name": "vlc", "learn_scale": True}, 1),
        ({"name": "unified", "margin": 0.1, "scale": 30}, 1),
        ({"name": "triplet_hn", "margin": 0.3}, 1),
        ({"name": "circle"}, 3),
        ({"name": "smooth_ap"}, 2),
    ],
)
@pytest.mark.parametrize("chunks", [1, 2, 4, 11])
def test_gradients_are_those_of_the_whole_batch(objective, captions, chunks):
    batch = pairs(ROWS, captions)
    bounds = [ROWS * number // chunks for number in range(chunks + 1)]
    plain = step_of(objective)
    loss = at_once(plain, batch, bounds, captions)
    loss.backward()

    step = step_of(objective)
    cached = CachedStep(step)
    torch.manual_seed(11)
    output = cached.encode(batch, chunks)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    drawn = torch.rand(1)
    torch.manual_seed(11)
    output = cached.encode(batch, chunks)
    counted = [chunk for chunk in cached.chunks(output.loss) if step(chunk).backward() is None]
    assert [len(chunk.images_bD) for chunk in counted] == [b - a for a, b in pairwise(bounds)]
    assert torch.rand(1) == drawn, "the draws after the step are not moved"
    found, expected = gradients(step), gradients(plain)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-13)


def test_more_chunks_than_rows_add_nothing():
    batch = pairs(3)
    plain, step = step_of({"name": "vlc"}), step_of({"name": "vlc"})
    for one in (plain, step):
        one.encoder.eval()
    plain(batch).loss.backward()
    cached = CachedStep(step)
    for chunk in cached.chunks(cached.encode(batch, 5).loss):
        step(chunk).backward()
    for name, value in gradients(plain).items():
        torch.testing.assert_close(gradients(step)[name], value, rtol=1e-11, atol=1e-13)


def share(rank: int, world: int) -> slice:
    return slice(ROWS * rank // world, ROWS * (rank + 1) // world)


def rank_main(rank: int, world: int, folder: str) -> None:
    """Gradients on each rank after DDP's average, and how often it averaged."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    config = validate(
        {"run": {"name": "x"}, "train": {"micro_batch": 2, "global_batch": 8}, "optimizer": {"clip_norm": None}}
    )
    step = step_of({"name": "vlc", "learn_scale": True}, dist.group.WORLD)
    step.encoder.eval()  # dropout belongs to a rank; the whole batch's has to be the same here
    strategy = DataParallel(config, step, World.join(torch.device("cpu")))
    averaged = []
    strategy._module.register_comm_hook(None, lambda _, bucket: (averaged.append(1), _mean(bucket))[1])
    rows = share(rank, world)
    output = strategy.forward(pairs(ROWS).of_rows(rows, rows), chunks_of(ROWS, world, 2))
    strategy.backward(output.loss)
    torch.save((gradients(step), len(averaged)), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _mean(bucket):
    work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_average_once_and_get_the_gradients_of_one_world(world, tmp_path):
    mp.spawn(rank_main, (world, str(tmp_path)), nprocs=world)
    plain = step_of({"name": "vlc", "learn_scale": True})
    plain.encoder.eval()
    plain(pairs(ROWS)).loss.backward()
    expected = gradients(plain)
    for rank in range(world):
        found, averages = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert averages == 1, "one bucket, once"
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


def test_batch_statistics_are_refused_by_name():
    torch.manual_seed(0)
    image = RegionsSpec(features=6, mlp=True)
    encoder = build(DualSpec(image=image, text=GruSpec(embedding=4), dim=4), WORDS)
    with pytest.raises(UserError, match=r"train\.micro_batch: image\.\S+ \(BatchNorm1d\).*accepted is null"):
        CachedStep(TrainStep(encoder, make("vlc"), None, "fp32"))


RANDOM = {"kind": "transformers", "pretrained": False}
RESNET = RANDOM | {"name": "resnet"}
RESNET["config"] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
_SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
CLIP = RANDOM | {"name": "clip", "config": {"text_config": _SMALL, "vision_config": _SMALL, "projection_dim": 4}}


@pytest.mark.parametrize(
    ("image", "refused"),
    [
        ({"kind": "vsrn", "features": 24}, r"image\.graph\.0\.norm \(BatchNorm1d\)"),
        ({"kind": "regions", "features": 24, "mlp": True}, r"image\.mlp\.norm \(BatchNorm1d\)"),
        (RESNET, r"image\.backbone\.\S+\.normalization \(BatchNorm2d\)"),
        (RESNET | {"freeze": True}, None),
        ({"kind": "cnn"}, None),
        (None, None),
    ],
    ids=["vsrn", "regions", "resnet", "frozen", "cnn", "clip"],
)  # fmt: skip
def test_the_driver_knows_of_batch_statistics_before_workers_start(image, refused):
    model = CLIP if image is None else {"image": image, "text": {"kind": "gru"}}
    spec = validate({"run": {"name": "x"}, "model": model}).model
    torch.manual_seed(0)
    if refused is None:
        refuse_batch_statistics(skeleton(spec), "train.micro_batch=4")
        refuse_batch_statistics(build(spec, 300), "train.micro_batch=4")
    else:
        for encoder in (skeleton(spec), build(spec, 300)):
            with pytest.raises(UserError, match=rf"^train\.micro_batch=4: {refused} takes statistics over the batch"):
                refuse_batch_statistics(encoder, "train.micro_batch=4")


def test_micro_batches_of_batch_statistics_leave_no_run_behind(tiny_config, regions):
    model = {"image": {"kind": "regions", "features": 24, "mlp": True}, "text": {"kind": "gru", "embedding": 16}}
    config = tiny_config("refused", data={"root": str(regions), "test": None}, model=model, train={"micro_batch": 4})
    with pytest.raises(UserError, match=r"^train\.micro_batch=4: image\.mlp\.norm .*accepted is null"):
        set_up(config, resume=False)
    assert not config.run_dir.exists()


@pytest.mark.parametrize("image", ["regions", "cnn"])
def test_a_run_in_micro_batches_takes_the_cached_way_and_stays_with_the_plain_one(
    image, tiny_config, tiny, regions, monkeypatch
):
    root, spec = (regions, {"kind": "regions", "features": 24}) if image == "regions" else (tiny, {"width": 8})
    sizes = []
    encode = TrainStep.encode

    def noted(self, pairs):
        sizes.append(len(pairs.image_ids_b))
        return encode(self, pairs)

    monkeypatch.setattr(TrainStep, "encode", noted)
    losses = {}
    for name, micro in (("plain", None), ("micro", 5)):
        config = tiny_config(
            name,
            data={"root": str(root), "test": None},
            model={"image": {"kind": image} | spec, "text": {"kind": "gru", "embedding": 16}},
            optimizer={"lr": 1e-3},
            train={"epochs": 1, "log_every": 1, "micro_batch": micro},
        )
        run = set_up(config, resume=False)
        complete(Training(config, World.join(torch.device("cpu")), lambda metrics: None))
        losses[name] = [json.loads(line).get("train/loss") for line in run.metrics.read_text().splitlines()]
        largest = max(sizes)
        assert largest == 22 if micro is None else largest <= 5
        sizes.clear()
    found, expected = ([loss for loss in losses[name] if loss is not None] for name in ("micro", "plain"))
    assert found == pytest.approx(expected, rel=1e-3)
