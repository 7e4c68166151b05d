"""Weights on disk, whole or in the pieces that several processes held, read one tensor at a time.

NAME.safetensors                 the whole, as any tool reads it
NAME/rank-00000.safetensors, …   or, of ranks that share the weights, a file for each rank that holds any
  TENSOR@START                   [n] elements START to START + n of a tensor, flattened row by row
  metadata: "shapes"             JSON: the shape of each whole tensor
"""

import json
import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from allpairs.errors import UserError
from allpairs.files import replacing

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""By the names of the safetensors format."""


@dataclass(frozen=True)
class WeightPiece:
    """A range of one tensor's elements, flattened row by row.

    Attributes:
        name, shape: of the whole tensor.
        start: the first element.
        values: `[n]`.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the tensor lies elsewhere."""
        return self.values.numel() == math.prod(self.shape)


def rank_file(name: str, rank: int) -> str:
    """Return the name of the file in which `rank` writes its pieces of `name`."""
    return f"{name}/rank-{rank:05}.safetensors"


def write_weights(folder: Path, name: str, pieces: Iterable[WeightPiece]) -> None:
    """Write pieces that are whole as one file.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    with replacing(folder / f"{name}.safetensors") as path:
        save_file({piece.name: piece.values.view(piece.shape) for piece in pieces}, path)


def write_pieces(folder: Path, name: str, pieces: Iterable[WeightPiece], rank: int) -> None:
    """Write what `rank` holds; nothing where that is nothing. Raises as `write_weights`."""
    tensors, shapes = {}, {}
    for piece in pieces:
        tensors[f"{piece.name}@{piece.start}"] = piece.values
        shapes[piece.name] = piece.shape
    if tensors:
        with replacing(folder / rank_file(name, rank)) as path:
            save_file(tensors, path, metadata={"shapes": json.dumps(shapes)})


def has_weights(folder: Path, name: str) -> bool:
    """Whether `folder` holds weights of that name, whole or in pieces."""
    return (folder / f"{name}.safetensors").exists() or (folder / name).is_dir()


def read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Return all tensors, whole.

    Raises:
        UserError: a file is missing or unreadable, or elements are.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({error})") from None
    saved = SavedPieces(folder, name)
    return {tensor: saved.read(tensor) for tensor in saved.shapes}


class SavedPieces:
    """What `write_pieces` of all ranks left in a folder; reads the tensor asked for, no more.

    Attributes:
        shapes: of the whole tensors, by name.

    Raises:
        UserError: there is none, or one is unreadable.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._at: dict[str, list[tuple[int, str, Any]]] = defaultdict(list)
        files = sorted(self._folder.glob("rank-*.safetensors"))
        if not files:
            raise UserError(f"{folder}: no {name}.safetensors in it")
        for path in files:
            try:
                file = safe_open(path, framework="pt")
                shapes = json.loads(file.metadata()["shapes"])
                self.shapes |= {tensor: tuple(shape) for tensor, shape in shapes.items()}
                for key in file.keys():  # noqa: SIM118 -- no mapping
                    tensor, _, start = key.rpartition("@")
                    self._at[tensor].append((int(start), key, file))
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}: not a readable piece of weights ({error})") from None

    def dtype(self, tensor: str) -> torch.dtype:
        """Return the type of a tensor's elements."""
        _, key, file = self._at[tensor][0]
        dtype: torch.dtype = file.get_slice(key)[:0].dtype
        return dtype

    def read(self, tensor: str) -> Tensor:
        """Return one tensor, whole.

        Raises:
            UserError: not all of its elements are there.
        """
        whole = torch.empty(self.shapes[tensor], dtype=self.dtype(tensor))
        flat, covered = whole.view(-1), 0
        for start, key, file in sorted(self._at[tensor], key=lambda at: at[0]):
            values = file.get_tensor(key)
            covered += len(values) if start == covered else 0
            if covered <= flat.numel():
                flat[start : start + len(values)] = values
        if covered != flat.numel():
            raise UserError(f"{self._folder}: {tensor} has {flat.numel():,} elements, not all of which are there")
        return whole


def join_pieces(saved: SavedPieces, path: Path) -> None:
    """Write pieces as one safetensors file, no more than one tensor in memory.

    The format (huggingface.co/docs/safetensors): the length of the header in 8 bytes, little-endian; the header, JSON
    of each tensor's type, shape and place; the tensors' bytes.

    Raises:
        UserError: as `SavedPieces.read`.
        OSError: it cannot be written.
    """
    header: dict[str, Mapping[str, Any]] = {}
    end = 0
    # Wider types first, so that every tensor is aligned.
    for name in sorted(saved.shapes, key=lambda name: (-saved.dtype(name).itemsize, name)):
        dtype, shape = saved.dtype(name), saved.shapes[name]
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": (end, end + size)}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in header:
            file.write(saved.read(name).contiguous().view(-1).view(torch.uint8).numpy().data)
