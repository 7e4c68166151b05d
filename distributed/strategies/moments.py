"""AdamW's moments on disk, in one format whoever held them: any strategy and any number of workers reads them.

optimizer/rank-00000.safetensors, a file for each rank that holds any
  exp_avg/NAME@START, exp_avg_sq/NAME@START   [n] elements START to START + n of parameter NAME, flattened row by row
  step/NAME                                   [] how often the parameter was updated
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from allpairs.errors import UserError
from allpairs.files import replacing
from allpairs.hashes import check_files
from allpairs.models.pieces import WeightPiece, rank_file

MOMENTS = ("exp_avg", "exp_avg_sq")
FOLDER = "optimizer"


@dataclass(frozen=True)
class Piece:
    """The moments of a range of one parameter's elements, flattened row by row.

    Attributes:
        name: of the parameter.
        start: the first element.
        step: how often the parameter was updated.
        moments: `exp_avg` and `exp_avg_sq`, each `[n]`.
    """

    name: str
    start: int
    step: float
    moments: dict[str, Tensor]


def write_moments(folder: Path, pieces: Iterable[Piece], rank: int) -> None:
    """Write what `rank` holds; nothing where that is nothing."""
    tensors: dict[str, Tensor] = {}
    for piece in pieces:
        tensors[f"step/{piece.name}"] = torch.tensor(piece.step, dtype=torch.float32)
        for moment in MOMENTS:
            tensors[f"{moment}/{piece.name}@{piece.start}"] = piece.moments[moment]
    if tensors:
        with replacing(folder / rank_file(FOLDER, rank)) as path:
            save_file(tensors, path)


class SavedMoments:
    """What `write_moments` of all ranks left in a checkpoint's folder; reads the ranges asked for, no more.

    Raises:
        UserError: files are missing, unreadable, or of an earlier version of allpairs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = sorted((folder / FOLDER).glob("rank-*.safetensors"))
        if not files:
            earlier = (folder / "optimizer.pt").exists() or any(folder.glob("*/*optim_states.pt"))
            raise UserError(
                f"{folder}: its optimiser's state was written by an earlier version of allpairs; go on from its "
                f"weights in a new run: model.init_from={folder}"
                if earlier
                else f"{folder}: no optimiser's state in it"
            )
        check_files(folder, [path.relative_to(folder).as_posix() for path in files])
        self._at: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self._steps: dict[str, float] = {}
        for path in files:
            self._index(path)

    def _index(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118 -- no mapping
                what, _, rest = key.partition("/")
                if what == "step":
                    self._steps[rest] = float(file.get_tensor(key))
                elif what == MOMENTS[0]:
                    name, _, start = rest.rpartition("@")
                    length = file.get_slice(key).get_shape()[0]
                    self._at[name].append((int(start), int(start) + length, file))
        except (SafetensorError, OSError, ValueError, IndexError) as error:
            raise UserError(f"{path}: not a readable optimiser state ({error})") from None

    def step(self, name: str) -> float:
        """Return how often the parameter was updated; 0 where it never was."""
        return self._steps.get(name, 0.0)

    def read(self, name: str, start: int, stop: int) -> dict[str, Tensor] | None:
        """Return the moments of elements `start` to `stop` of a flattened parameter; None where it never had any.

        Raises:
            UserError: not all of them are there.
        """
        if name not in self._steps:
            return None
        found = {moment: torch.empty(stop - start) for moment in MOMENTS}
        covered = 0
        for first, last, file in self._at[name]:
            begin, end = max(first, start), min(last, stop)
            if begin >= end:
                continue
            covered += end - begin
            for moment, values in found.items():
                part = file.get_slice(f"{moment}/{name}@{first}")[begin - first : end - first]
                values[begin - start : end - start] = part
        if covered != stop - start:
            raise UserError(f"{self._folder}: {name} has {stop - start} elements here, {covered} in the checkpoint")
        return found


def state_of(parameter: Tensor, step: float) -> dict[str, Tensor]:
    """Return AdamW's state of `parameter` after `step` updates, its moments zero, laid out as AdamW itself does."""
    zeros = {moment: torch.zeros_like(parameter, memory_format=torch.preserve_format) for moment in MOMENTS}
    return {"step": torch.tensor(step, dtype=torch.float32)} | zeros


def copied(tensor: Tensor) -> Tensor:
    """Return a copy of `tensor` on the CPU, row by row, which later steps don't change."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def copied_weights(module: nn.Module) -> list[WeightPiece]:
    """Copy all of a module's weights and buffers, whole."""
    return [
        WeightPiece(name, tuple(value.shape), 0, copied(value).view(-1)) for name, value in module.state_dict().items()
    ]
