"""What drills train: the built-in scenes and a small encoder for seconds; and a Ray that many of them share."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed.data.scenes import scene_splits
from distributed.data.writer import write_split

ROOT = Path(__file__).resolve().parents[2]

TRAIN_IMAGES, VAL_IMAGES = 400, 20
STEPS = 140
"""Of the whole run: 7 epochs of 20 steps. Checkpoints every 7 steps and at the end of an epoch, so most steps between
two of them lie inside of an epoch."""

_DATA = {"test": None, "image_size": 32}
_SETTING = {
    "model": {
        "dim": 16,
        "image": {"kind": "cnn", "width": 8, "blocks": 2},
        "text": {"kind": "gru", "embedding": 16, "word_dropout": 0.1},
    },
    "objective": {"name": "vlc", "learn_scale": True},
    "optimizer": {"lr": 0.002},
    "train": {"epochs": 7, "global_batch": 20, "log_every": 1, "checkpoint_every_steps": 7},
    "eval": {"every": 3},
    "tracking": {"wandb": "disabled"},
    "cluster": {"workers": 2, "max_failures": 20},
}

_TOKEN = secrets.token_hex(32)

_HEAD = """
import ray, sys
from retrieval_eval.ray_cluster import cluster
with cluster(cpus=4, dashboard=True):  # which Ray asks whether the controller of a killed driver is gone
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


def lay_out(folder: Path) -> Path:
    """Write data and configuration into `folder`, unless they are there; return the configuration file."""
    file = folder / "drill.yaml"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"train": TRAIN_IMAGES, "val": VAL_IMAGES, "test": 10}
    for split, samples in scene_splits(seed=0, sizes=sizes).items():
        if split != "test" and not (folder / split).exists():
            write_split(folder / split, samples, name="drill", split=split, source={}, shard_samples=150)
    tree = _SETTING | {"run": {"name": "drill", "dir": str(folder)}, "data": _DATA | {"root": str(folder)}}
    file.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    return file


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command: this checkout, one thread a process, and no Ray but the one named."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}  # no other Ray of this machine is joined by mistake
    return kept | token | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | more


@contextmanager
def shared_ray() -> Iterator[tuple[str, int]]:
    """Have a Ray on this machine within the block; gives its address and the process that holds it.

    It ends with this process, however that ends: then nothing writes to its input any more.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _HEAD],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address, process.pid
    finally:
        process.stdin.close()
        process.wait(60)
