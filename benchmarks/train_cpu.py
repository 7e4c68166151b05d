"""Training time of the service against the plain loop, on the same shards, recipe and cores, one after the other.

    python -m benchmarks.train_cpu [--config configs/emoji.yaml] [--workers 2] [section.key=value ...]

Three runs, each a process of its own: the plain loop with two torch threads (decoding every image in every epoch, then
keeping the decoded images), and the service with two Ray workers of one thread each. "training" is the time inside
training steps, data included, evaluation and checkpoints excluded; "whole process" is everything. Run it on a quiet
machine: anything else on the cores falls into the ratio.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


def timed(name: str, *command: str) -> tuple[str, float]:
    """Run a module of the project; return what it printed and its wall seconds. Its progress goes to our stderr."""
    print(f"{name}: python -m {' '.join(command)}", file=sys.stderr)
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        sys.exit(f"{name} failed with exit code {result.returncode}")
    return result.stdout, time.perf_counter() - started


def last_values(metrics: Path) -> dict[str, float]:
    """Return the last value of every metric in a run's `metrics.jsonl`."""
    values: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        values |= json.loads(line)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the service against the plain loop.")
    parser.add_argument("--config", default="configs/emoji.yaml")
    parser.add_argument(
        "--workers", type=int, default=2, help="Ray workers of the service; torch threads of the plain loop"
    )
    parser.add_argument("overrides", nargs="*", help="section.key=value, for all three runs")
    arguments = parser.parse_args()
    recipe = ["--config", arguments.config, *arguments.overrides]
    threads = ["--threads", str(arguments.workers)]
    rows: list[tuple[str, dict[str, float], float]] = []
    for name, options in (("plain loop", []), ("plain loop, images kept decoded", ["--keep-decoded"])):
        output, wall = timed(name, "benchmarks.plain_loop", *threads, *options, *recipe)
        rows.append((name, json.loads(output.splitlines()[-1]), wall))
    with tempfile.TemporaryDirectory() as folder:
        where = [
            f"run.dir={folder}",
            "run.name=timed",
            f"cluster.workers={arguments.workers}",
            "tracking.wandb=disabled",
        ]
        name = f"service, {arguments.workers} Ray workers"
        _, wall = timed(name, "distributed.train", *recipe, *where)
        rows.append((name, last_values(Path(folder) / "timed" / "metrics.jsonl"), wall))

    table = Table("run", "training [s]", "ratio", "whole process [s]", "val RSUM", "test RSUM", title=arguments.config)
    for name, values, wall in rows:
        seconds = values["train/seconds"]
        val = values.get("val/best_rsum", values["val/rsum"])
        ratio = f"{seconds / rows[0][1]['train/seconds']:.2f}"
        table.add_row(name, f"{seconds:.1f}", ratio, f"{wall:.1f}", f"{val:.1f}", f"{values['test/rsum']:.1f}")
    Console().print(table)
    load = os.getloadavg()[2]
    print(
        f"{os.cpu_count()} CPUs, load average over 15 minutes {load:.1f}: above the workers, not quiet", file=sys.stderr
    )


if __name__ == "__main__":
    main()
