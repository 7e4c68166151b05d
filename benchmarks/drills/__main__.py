"""Disturb runs on purpose and see whether they end as if nobody had.

    python -m benchmarks.drills [--seeds 20] [--faults 1] [--only KIND ...] [--out DIR]

Each drill is a run of the training command through Ray, two workers on the built-in scenes cut small, that meets a
fault at a step drawn by its seed: `worker` SIGKILL of a rank, `checkpoint` the same while a checkpoint is being
written, `driver` SIGKILL of the command and --resume, `sigterm` SIGTERM and --resume, `resize` 2 → 1 → 3 workers by
SIGTERM and --resume, `truncate` a file of the last checkpoint cut or a byte of it flipped, in turn of every strategy.
It passes where the fault fired (a process that was there and trained), and the run ends with the weights of an
undisturbed run bit for bit (`resize`: but for rounding), its certificate, each row of metrics once, and no process
left.
`memory` is no drill: workers' memory and file descriptors over an hour's worth of steps.

Rows go to DIR/drills.jsonl as they come; an interrupted table goes on. Only processes that it started are killed.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.drills.drill import KINDS, drill
from benchmarks.drills.record import Record
from benchmarks.drills.setting import lay_out, shared_ray
from benchmarks.drills.soak import HOUR, soak


def main() -> int:
    """Run the drills that were not run yet; exit code 1 where any failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills", description="Disturb runs on purpose.")
    parser.add_argument("--seeds", type=int, default=20, help="drills of each kind")
    parser.add_argument("--faults", type=int, default=1, help="faults that each run meets, one after the other")
    parser.add_argument("--only", nargs="+", choices=[*KINDS, "memory"], default=list(KINDS), metavar="KIND")
    parser.add_argument("--steps", type=int, default=HOUR, help="of memory")
    parser.add_argument("--out", type=Path, default=Path("runs/drills"))
    given = parser.parse_args()
    if "truncate" in given.only and importlib.util.find_spec("deepspeed") is None:
        parser.error("truncate takes every strategy in turn and needs DeepSpeed: pip install '.[deepspeed]'")
    out = given.out.resolve()
    config, record = lay_out(out), Record(out / "drills.jsonl")
    todo = [(kind, seed) for seed in range(given.seeds) for kind in given.only if kind in KINDS]
    todo = [(kind, seed) for kind, seed in todo if not record.has(kind, seed)]
    console = Console(width=120)
    if "memory" in given.only:
        with shared_ray() as ray:
            console.print(soak(config, ray, given.steps))
    if todo:
        with shared_ray() as ray:
            for kind, seed in todo:
                verdict = drill(kind, seed, config, ray, [KINDS[kind]] * given.faults)
                record.add(verdict)
                told = "; ".join(f"{fault.what} at step {fault.step}" for fault in verdict.fired)
                state = f"FAILED: {verdict.failure}" if verdict.failure else "passed"
                print(f"{kind} {seed} ({verdict.wall:.0f} s): {told}: {state}", file=sys.stderr, flush=True)
    if record.rows():
        console.print(record.table())
    print(f"{os.cpu_count()} CPUs, load average over 15 minutes {os.getloadavg()[2]:.1f}", file=sys.stderr)
    return int(any(row["failure"] for row in record.rows()))


if __name__ == "__main__":
    sys.exit(main())
