"""Measure everything that needs a GPU, 65,536 pairs first and a million last, until the minutes are over.

    python -m benchmarks.gpu --out DIR [--minutes 9] [--peers FOLDER_OF_WHEELS] [--only SECTION ...]
    python -m benchmarks.gpu --out DIR --device cpu --size small     whether everything runs, on any machine

Needs torch and Triton, nothing else of the service and no network. DIR/rows.jsonl holds each row from the moment it is
measured, DIR/table.md at the end all of them as Markdown, for RESULTS.md. What would pass the deadline is skipped and
named; what fails is lost alone, with its error. Inputs are bfloat16 unit vectors and both sides get gradients; times
are medians, with the lowest and highest, between CUDA events after one call in which kernels are compiled; extra MB the
allocator's peak beyond the inputs, gradients included. TFLOP/s counts the least a loss can do, whatever was done: four
products of 2·B²·D for a softmax over both directions, three for siglip-kernel's sigmoid.

To be held at B = 65,536, D = 768 on a Hopper GPU by vlc: 44 ms (stretch 40) and 480 MB.
"""

import argparse
import platform
import sys
from pathlib import Path

import torch

from benchmarks.gpu import batches, ceilings, checks, evaluation, objectives, parity, peers, step, sweep
from benchmarks.gpu.bench import FULL, SMALL, Bench
from benchmarks.gpu.record import Record
from benchmarks.gpu.timing import clocks

SECTIONS = {
    "checks": checks.run,
    "ceilings": ceilings.run,
    "step": step.run,
    "peers": peers.run,
    "sweep": sweep.run,
    "parity": parity.run,
    "objectives": objectives.run,
    "batches": batches.run,
    "evaluation": evaluation.run,
    "largest": batches.run_largest,
    "sampled": parity.run_sampled,
}
"""In the order in which they run."""


def machine(device: str) -> dict[str, str | int]:
    """Return what the figures are of."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    name = platform.machine()
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        name = f"{found.name}, {found.multi_processor_count} multiprocessors"
    return {"device": name, "torch": torch.__version__, "triton": version, **clocks(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure everything that needs a GPU.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="wheels of others' losses")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", default=list(SECTIONS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu: no CUDA GPU is visible to torch; accepted here: --device cpu --size small, to see that all runs",
            file=sys.stderr,
        )
        sys.exit(2)
    if given.peers is not None and not given.peers.is_dir():
        print(f"gpu: --peers {given.peers}: a folder of wheels is accepted", file=sys.stderr)
        sys.exit(2)
    record = Record(given.out)
    bench = Bench(record, FULL if given.size == "full" else SMALL, given.device, given.minutes, given.peers)
    record.measured("machine", "this", **machine(given.device))
    for name, run in SECTIONS.items():
        if name not in given.only:
            continue
        if bench.left <= 0:
            record.skipped(name, "the whole section", "the minutes are over")
            continue
        try:
            run(bench)
        except Exception as error:
            record.lost(name, "the rest of the section", error)
    print(f"{record.table()}: {len(record.rows)} rows")


if __name__ == "__main__":
    main()
