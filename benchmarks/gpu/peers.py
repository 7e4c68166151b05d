"""Losses of others at 65,536 pairs in the same type, each in a process of its own: what breaks one breaks no other row.

Peers are the installed packages, or the wheels in the folder that `--peers` names, unpacked without installing.
"""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.losses import softmax_work
from benchmarks.gpu.peer import PEERS

SECTION = "peers"
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 25


def run(bench: Bench) -> None:
    """Measure each peer that is there, and name those that are not."""
    found = unpacked(bench)
    for name, peer in PEERS.items():
        installed = peer.package is None or importlib.util.find_spec(peer.package) is not None
        if not installed and (found is None or not _holds(found, peer.package)):
            bench.record.skipped(SECTION, name, f"{peer.package} is not installed, nor a wheel of it in --peers")
            continue
        bench.row(SECTION, name, SECONDS, lambda name=name: in_a_process(bench, name, found))


def unpacked(bench: Bench) -> Path | None:
    """Unpack the wheels and return the folder."""
    if bench.peers is None:
        return None
    folder = bench.record.directory / "peers"
    for wheel in sorted(bench.peers.glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            bench.record.lost(SECTION, wheel.name, error)
    return folder


def _holds(folder: Path, package: str | None) -> bool:
    return (folder / f"{package}").is_dir() or (folder / f"{package}.py").is_file()


def in_a_process(bench: Bench, name: str, found: Path | None) -> dict[str, Any]:
    """Return what the process of one peer measures."""
    sizes = bench.sizes
    command = [sys.executable, "-m", "benchmarks.gpu.peer", name, "--device", bench.device]
    command += ["--batch", str(sizes.batch), "--dim", str(sizes.dim), "--seconds", str(sizes.seconds)]
    paths = [str(ROOT), *([] if found is None else [str(found.resolve())]), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=max(min(bench.left, 3 * SECONDS), 1),
    )
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1])
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    share = PEERS[name].products / 4
    return {**measured, "TFLOP/s": share * softmax_work(sizes.batch, sizes.dim) / measured["ms"] / 1e9}
