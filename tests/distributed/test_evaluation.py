"""What all ranks measure together is what rank 0's checkpoint holds."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing as mp

from allpairs.models import DualSpec, GruSpec, RegionsSpec, Vocabulary, build
from distributed.config import Config, validate
from distributed.data import open_dataset
from distributed.evaluation import Encoded, encode
from distributed.world import World

SPEC = DualSpec(image=RegionsSpec(features=24, mlp=True), text=GruSpec(embedding=8), dim=8)
MODEL = {"dim": 8, "image": {"kind": "regions", "features": 24, "mlp": True}, "text": {"kind": "gru", "embedding": 8}}


def encoded(data: str, rank: int) -> Encoded | None:
    """The val split by this process's share of the ranks, whose batch statistics differ."""
    config: Config = validate(
        {"run": {"name": "x"}, "data": {"root": data, "test": None}, "model": MODEL, "eval": {"batch": 8}}
    )
    words = Vocabulary.build(["a small red square"], min_count=1, max_size=100)
    torch.manual_seed(0)
    encoder = build(SPEC, len(words))
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.1 + rank)
    world = World.join(torch.device("cpu"))
    return encode(encoder, open_dataset(config.data.folder("val")), words, config, world)


def rank_main(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = encoded(data, rank)
    if found is not None:
        torch.save((found.images_ND, found.captions_CD), f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_measure_with_the_statistics_of_rank_0(regions: Path, tmp_path: Path):
    mp.spawn(rank_main, (str(tmp_path), str(regions)), nprocs=2)
    images, captions = torch.load(tmp_path / "found.pt", weights_only=True)
    alone = encoded(str(regions), 0)
    assert alone is not None
    torch.testing.assert_close(images, alone.images_ND, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(captions, alone.captions_CD, rtol=1e-5, atol=1e-6)
