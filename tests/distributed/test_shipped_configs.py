"""Every shipped configuration under every strategy: two steps by two Ray Train workers, and a checkpoint."""

from pathlib import Path

import pytest
import torch
import yaml

from allpairs.models import reads_regions
from allpairs.models.pieces import read_weights
from distributed.config import Config, load
from distributed.data import open_dataset
from distributed.data.sources import build_tiles
from distributed.launch import QUIET, set_up
from retrieval_eval.ray_cluster import cluster

ROOT = Path(__file__).parents[2]
STRATEGIES = (
    ["train.strategy=ddp"],
    ["train.strategy=deepspeed", "train.zero_stage=1"],
    ["train.strategy=deepspeed", "train.zero_stage=2"],
    ["train.strategy=deepspeed", "train.zero_stage=3"],
    ["train.strategy=fsdp2"],
)


def runs_without_a_hub() -> list[Path]:
    """The shipped files that are runs (searches are not) whose encoders need no downloaded weights.

    The papers' are left out: they are of the papers' sizes, and their data is elsewhere.
    """
    configs = ROOT / "configs"
    files = [file for file in sorted(configs.rglob("*.yaml")) if not file.is_relative_to(configs / "papers")]
    files = [file for file in files if "run" in yaml.safe_load(file.read_text())]
    return [file for file in files if not _downloads(yaml.safe_load(file.read_text())["model"])]


def _data_of(file: Path, pictures: Path, tiles: Path) -> Path:
    return tiles if reads_regions(load(file).model) else pictures


def _downloads(model: dict) -> bool:
    """Whether a network of the model has weights of a hub."""
    parts = [model, model.get("image", {}), model.get("text", {})]
    return any(part.get("kind") == "transformers" and part.get("pretrained", True) for part in parts)


def train_all(settings: dict[str, list]) -> None:
    """One group of workers for all of them: starting it is what takes the time."""
    from distributed.worker import train_worker

    for one in settings["configs"]:
        train_worker({"config": one})


@pytest.fixture
def configs(pairs: Path, tmp_path: Path) -> list[Config]:
    """Two steps of each file under each strategy; of regions, those that the launch line in the file cuts."""
    dataset = open_dataset(pairs / "train")
    steps = {"images": len(dataset) // 16, "captions": int(dataset.caption_counts().sum()) // 16}
    build_tiles(pairs, out=tmp_path / "tiles", grid=6, side=8)
    common = [
        f"run.dir={tmp_path}", "train.global_batch=16",
        "cluster.workers=2", "tracking.wandb=disabled",
    ]  # fmt: skip
    return [
        load(
            file,
            [
                *common,
                f"data.root={_data_of(file, pairs, tmp_path / 'tiles')}",
                *strategy,
                f"train.stop_after_epochs={2 / steps[load(file).data.epoch_unit]}",
                f"run.name={file.parent.name}-{file.stem}-{number}",
            ],
        )
        for file in runs_without_a_hub()
        for number, strategy in enumerate(STRATEGIES)
    ]


@pytest.mark.realdata
def test_every_shipped_config_trains_under_every_strategy(configs: list[Config]) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    runs = [set_up(config, resume=False) for config in configs]
    assert len(runs) >= 2 * len(STRATEGIES)
    with cluster(cpus=2):
        TorchTrainer(
            train_all,
            train_loop_config={"configs": [config.model_dump(mode="json") for config in configs]},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=str(configs[0].run.dir / "ray"), worker_runtime_env={"env_vars": QUIET}),
        ).fit()
    weights = {}
    for config, run in zip(configs, runs, strict=True):
        assert not run.stopped.exists(), f"{run.root.name}: {run.stopped.read_text()}"
        assert run.last_step() == 2, run.root.name
        weights[config.run.name] = read_weights(run.checkpoints / "last", "model")
    for name, found in weights.items():
        plain = weights[f"{name[:-1]}0"]
        for key, value in found.items():
            torch.testing.assert_close(value, plain[key], rtol=1e-3, atol=1e-5, msg=f"{name}: {key} is not as with DDP")
