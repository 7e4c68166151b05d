"""What NCR gains on pairs of which some do not match: `train.recipe: ncr` beside plain training.

python -m benchmarks.noisy_pairs DATA [--fractions 0.2,0.4,0.6] [section.key=value ...]

For each fraction DATA's training captions are shuffled and three runs of `configs/ncr.yaml` trained, in this process:
plain hard negatives (with as long a warm-up on all negatives) with two seeds, and NCR with the first. Two plain nets
asked together are shown too, as NCR's figure is that of two nets. Prints one row of a table each: RSUM of the test
split under the best checkpoint by validation, precision and recall of the pairs that NCR called noisy in its last
epoch.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from distributed.config import load
from distributed.data import open_dataset
from distributed.data.sources import build_shuffled
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.run_directory import RunDirectory
from distributed.world import World
from retrieval_eval.evaluate import evaluate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--fractions", default="0.2,0.4,0.6")
    parser.add_argument("settings", nargs="*")
    given = parser.parse_args()
    print("| shuffled | plain, two seeds | both together | NCR | precision | recall |\n|---|---|---|---|---|---|")
    for fraction in map(float, given.fractions.split(",")):
        folder = Path(tempfile.mkdtemp())
        build_shuffled(given.data, out=folder / "data", fraction=fraction)

        def trained(name: str, *settings: str, folder: Path = folder) -> RunDirectory:
            places = (f"run.name={name}", f"run.dir={folder / 'runs'}", f"data.root={folder / 'data'}")
            quiet = ("tracking.wandb=disabled", "cluster.workers=1")
            config = load(Path("configs/ncr.yaml"), [*places, *quiet, *settings, *given.settings])
            run = set_up(config, resume=False)
            complete(Training(config, World.join(torch.device("cpu")), lambda _: None))
            return run

        plain = ("train.recipe=plain", "train.triplet_warmup_epochs=4")
        runs = [trained(f"plain-{seed}", *plain, f"train.seed={seed}") for seed in (0, 1)]
        ncr = trained("ncr")
        alone, both = ", ".join(f"{rsum(run):.1f}" for run in runs), together(runs)
        precision, recall = found(ncr, given.data / "train", folder / "data/train")
        print(
            f"| {fraction:.0%} | {alone} | {both:.1f} | {rsum(ncr):.1f} | {precision:.1%} | {recall:.1%} |", flush=True
        )
        shutil.rmtree(folder)


def rsum(run: RunDirectory) -> float:
    """Return the test RSUM of a finished run."""
    return json.loads(run.summary.read_text(encoding="utf-8"))["test/rsum"]


def together(runs: list[RunDirectory]) -> float:
    """Return the test RSUM of the mean of the runs' similarities."""
    folders = [run.embeddings("test") for run in runs]
    sides = [
        torch.from_numpy(np.concatenate([np.load(folder / f"{side}.npy") for folder in folders], axis=1))
        for side in ("images", "captions")
    ]
    ids = [
        torch.from_numpy(pq.read_table(folders[0] / f"{side}.parquet")["id"].to_numpy().copy())
        for side in ("images", "captions")
    ]
    return evaluate(*(side / len(runs) ** 0.5 for side in sides), *ids).metrics["rsum"]


def found(run: RunDirectory, clean: Path, shuffled: Path) -> tuple[float, float]:
    """Return precision and recall of the pairs called noisy; a pair is one where its caption is not what it was."""
    before, after = (list(open_dataset(folder).captions_by_key()) for folder in (clean, shuffled))
    broken = {
        (key, text)
        for (key, old), (_, new) in zip(before, after, strict=True)
        for text, true in zip(new, old, strict=True)
        if text != true
    }
    called = {(row["key"], row["caption"]) for row in pq.read_table(run.noisy_pairs).to_pylist()}
    hits = len(broken & called)
    return hits / max(1, len(called)), hits / max(1, len(broken))


if __name__ == "__main__":
    main()
