"""Finished units in a folder, so that an evaluation that was killed goes on where it was."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError
from allpairs.files import replacing, write_json
from retrieval_eval.counting import SliceCounts
from retrieval_eval.inputs import BLOCK, Matrix, as_tensor
from retrieval_eval.sharded.problem import Problem, Result, Unit

FORMAT = 1


class State:
    """A folder with one file per finished unit, and what the units belong to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path, problem: Problem, shards: int) -> "State":
        """Open the folder, or make it; UserError if it holds the work of something else."""
        file = folder / "problem.json"
        fingerprint = _fingerprint(problem, shards)
        state = cls(folder)
        if file.exists():
            try:
                found = json.loads(file.read_text())
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise UserError(f"{file} is damaged; delete {folder}, or name another folder")
            differs = [name for name, value in fingerprint.items() if found.get(name) != value]
            if differs:
                raise UserError(
                    f"{folder} holds the work of another evaluation ({', '.join(differs)} differ)"
                    "; name another folder, or delete it"
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not a folder of an evaluation's state; accepted: a new or an empty folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, fingerprint)
        return state

    def read(self, unit: Unit) -> Result | None:
        """Return the result of a finished unit, None if it is not; UserError for a damaged file."""
        file = self.folder / f"{unit.name}.npz"
        if not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as found:
                if unit.kind == "scores":
                    scores: np.ndarray = found["scores"]
                    return scores
                return SliceCounts(found["forward"].astype(np.int64), found["backward"].astype(np.int64))
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
            raise UserError(f"{file} is damaged; delete it, and its part is counted again") from None

    def write(self, unit: Unit, result: Result) -> None:
        """Keep the result of a unit: its file is there whole, or not at all."""
        if isinstance(result, SliceCounts):
            # A count is at most the size of a gallery.
            arrays = {name: _narrow(getattr(result, name)) for name in ("forward", "backward")}
        else:
            arrays = {"scores": result}
        with replacing(self.folder / f"{unit.name}.npz") as partial, partial.open("wb") as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]


def _narrow(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.uint32) if counts.max(initial=0) < 2**32 else counts


def _fingerprint(problem: Problem, shards: int) -> dict[str, Any]:
    positives = hashlib.blake2b()
    for array in (problem.positives.offsets, problem.positives.indices):
        positives.update(np.ascontiguousarray(array).data)
    device = problem.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else device.type
    return {
        "format": FORMAT,
        "queries": _hash(problem.queries),
        "gallery": _hash(problem.gallery),
        "positives": positives.hexdigest(),
        "directions": 2 if problem.both else 1,
        "tile": problem.side,
        "cosine": problem.cosine,
        "shards": shards,
        # Scores compared across a restart must have the same bits.
        "arithmetic": f"torch {torch.__version__} on {name}, {torch.backends.cpu.get_cpu_capability()}"
        f", {torch.get_num_threads()} threads",
    }


def _hash(values: Matrix) -> str:
    X = as_tensor(values)
    found = hashlib.blake2b(f"{list(X.shape)} {X.dtype}".encode())
    step = max(1, BLOCK // X.shape[1])
    for start in range(0, len(X), step):
        found.update(X[start : start + step].cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
