"""Encoding in chunks gives the whole batch's gradients, in float64, with dropout, in worlds 1 to 4; and trains.

Every objective and every kind of encoder; under every strategy in test_strategies.py.
"""

import json
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing as mp

from allpairs.errors import UserError
from allpairs.models import DualSpec, GruSpec, ModelSpec, RegionsSpec, build, recompute_activations, skeleton
from allpairs.objectives import make
from distributed.cached import CachedStep, chunks_of, refuse_batch_statistics
from distributed.config import validate
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.step import Pairs, TrainStep
from distributed.strategies.ddp import DataParallel
from distributed.world import World
from tests.allpairs.objectives.cases import TABLE

REGIONS = DualSpec(image=RegionsSpec(features=6), text=GruSpec(embedding=5, word_dropout=0.4), dim=8)
ROWS, WORDS = 11, 9

RANDOM = {"kind": "transformers", "pretrained": False}
RESNET = RANDOM | {"name": "resnet"}
RESNET["config"] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
_SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
CLIP = RANDOM | {"name": "clip", "config": {"text_config": _SMALL, "vision_config": _SMALL, "projection_dim": 4}}

_DROP = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
VIT = RANDOM | {"name": "vit", "config": _SMALL | _DROP | {"image_size": 16, "patch_size": 8}}
BERT = RANDOM | {"name": "bert", "config": _SMALL | _DROP}
_PARTS = {"text_config": _SMALL | {"attention_dropout": 0.3}}
_PARTS["vision_config"] = _PARTS["text_config"] | {"image_size": 16, "patch_size": 8}
ENCODERS = {
    "regions": {"image": {"kind": "regions", "features": 6, "pool": "gpo", "drop": 0.3}, "text": BERT | {"drop": 0.3}},
    "cnn": {"image": {"kind": "cnn", "width": 8, "blocks": 2}, "text": {"kind": "bigru", "word_dropout": 0.3}},
    "clip": CLIP | {"config": CLIP["config"] | _PARTS},
    "towers": {"image": VIT | {"pool": "gpo", "drop": 0.3}, "text": BERT | {"pool": "mean"}},
    "frozen": {"image": VIT | {"freeze": True}, "text": BERT},
}
"""All of them with masks that are drawn, by whatever draws them."""


def pairs(rows: int, captions: int = 1, *, pictures: bool = False) -> Pairs:
    """The whole batch: ids repeat once, so that masks matter."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.arange(rows)
    ids[-1] = ids[0]
    lengths = torch.randint(2, 6, (rows * captions,), generator=draw)
    regions = torch.randn(rows, 4, 6, generator=draw, dtype=torch.float64)
    return Pairs(
        torch.randint(256, (rows, 3, 16, 16), generator=draw, dtype=torch.uint8) if pictures else regions,
        torch.randint(1, WORDS, (rows * captions, 6), generator=draw),
        lengths,
        ids,
        ids.repeat_interleave(captions),
    )


def step_of(objective: dict, group=None, spec: ModelSpec = REGIONS) -> TrainStep:
    torch.manual_seed(3)
    encoder = build(spec, WORDS).double().train()
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


OBJECTIVES = [
    ({"name": name} | arguments, 3 if case.positives_by_ids else 1)
    for name, case in TABLE.items()
    for arguments in (case.settings[0], {"learn_scale": True})
    if arguments == case.settings[0] or name in ("vlc", "siglip")
]


@pytest.mark.parametrize(("objective", "captions"), OBJECTIVES, ids=str)
@pytest.mark.parametrize("chunks", [4, 11])
def test_gradients_are_those_of_the_whole_batch(objective, captions, chunks):
    batch = pairs(ROWS, captions)
    assert_as_at_once(step_of(objective), step_of(objective), batch, chunks, captions)


def assert_as_at_once(plain: TrainStep, step: TrainStep, batch: Pairs, chunks: int, captions: int = 1) -> None:
    """What `step` computes in chunks is what `plain`, its equal, does with one graph."""
    bounds = [ROWS * number // chunks for number in range(chunks + 1)]
    loss = at_once(plain, batch, bounds, captions)
    loss.backward()
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


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_every_kind_of_encoder_draws_the_same_in_both_passes(kind, chunks):
    spec = validate({"run": {"name": "x"}, "model": ENCODERS[kind]}).model
    plain, step = (step_of({"name": "vlc", "learn_scale": True}, spec=spec) for _ in range(2))
    if kind == "towers":
        for one in (plain, step):
            recompute_activations(one.encoder)
    assert_as_at_once(plain, step, pairs(ROWS, pictures=kind != "regions"), chunks)


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
    """Gradients on each rank after DDP's average, and how often it averaged; with dropout, and what they should be."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    config = validate(
        {"run": {"name": "x"}, "train": {"micro_batch": 2, "global_batch": 8}, "optimizer": {"clip_norm": None}}
    )
    rows, chunks = share(rank, world), chunks_of(ROWS, world, 2)
    batch = pairs(ROWS).of_rows(rows, rows)
    found = []
    for dropout in (False, True):  # without it the gradients are those of one world, whose masks are others
        step = step_of({"name": "vlc", "learn_scale": True}, dist.group.WORLD)
        step.encoder.train(dropout)
        strategy = DataParallel(config, step, World.join(torch.device("cpu")))
        averaged: list[int] = []
        strategy._module.register_comm_hook(
            None, lambda _, bucket, averaged=averaged: (averaged.append(1), _mean(bucket))[1]
        )
        torch.manual_seed(11)
        strategy.backward(strategy.forward(batch, chunks).loss)
        found.append((gradients(step), len(averaged)))
    plain = step_of({"name": "vlc", "learn_scale": True}, dist.group.WORLD)
    count = len(batch.image_ids_b)
    at_once(plain, batch, [count * number // chunks for number in range(chunks + 1)], 1).backward()
    for value in plain.parameters():
        dist.all_reduce(value.grad.div_(world))
    torch.save((found, gradients(plain)), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _mean(bucket):
    work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_average_once_and_get_the_gradients_of_one_world(world, tmp_path):
    mp.spawn(rank_main, (world, str(tmp_path)), nprocs=world)
    plain = step_of({"name": "vlc", "learn_scale": True})
    plain.encoder.eval()
    plain(pairs(ROWS)).loss.backward()
    of_one_world = gradients(plain)
    for rank in range(world):
        found, with_dropout = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for (values, averages), expected in zip(found, (of_one_world, with_dropout), strict=True):
            assert averages == 1, "one bucket, once"
            assert values.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(values[name], value, rtol=1e-10, atol=1e-12)
        assert found[0][0]["encoder.text.words.weight"].ne(with_dropout["encoder.text.words.weight"]).any()


def test_batch_statistics_are_refused_by_name():
    torch.manual_seed(0)
    image = RegionsSpec(features=6, mlp=True)
    encoder = build(DualSpec(image=image, text=GruSpec(embedding=4), dim=4), WORDS)
    with pytest.raises(UserError, match=r"train\.micro_batch: image\.\S+ \(BatchNorm1d\).*accepted is null"):
        CachedStep(TrainStep(encoder, make("vlc"), None, "fp32"))


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
