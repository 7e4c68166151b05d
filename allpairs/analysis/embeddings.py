"""The embeddings of a split under a checkpoint, as one safetensors file that needs no data set to be read.

``queries`` [N, D] and ``candidates`` [M, D] float32, ``query_ids`` [N] and ``candidate_ids`` [M] int64; as metadata,
where they come from. The folder of embeddings that evaluation reads serves reports (thumbnails, texts) and lies a floor
above; this file has what an analysis needs instead: any split, the checkpoint, the objective it was trained with.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from allpairs.errors import UserError

_TYPES: dict[str, np.dtype[Any]] = {
    "queries": np.dtype(np.float32),
    "candidates": np.dtype(np.float32),
    "query_ids": np.dtype(np.int64),
    "candidate_ids": np.dtype(np.int64),
}


@dataclass(frozen=True)
class Origin:
    """Where embeddings come from; empty where nobody said."""

    run: str = ""
    checkpoint: str = ""
    """Name of the checkpoint: best or last."""
    step: int | None = None
    split: str = ""
    objective: str = ""
    """Name of the objective it was trained with, as `allpairs.objectives.make` takes it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its arguments, a learned scale as the number learned."""
    captions_per_image: int = 1
    """Captions of each image in its training batches."""


@dataclass(eq=False)
class Embeddings:
    """Queries and candidates of one split, joined by ids.

    Raises:
        UserError: parts that do not fit together, numbers that are not finite, ids that leave someone without a match.
    """

    queries: np.ndarray
    """[N, D] float32."""
    candidates: np.ndarray
    """[M, D] float32."""
    query_ids: np.ndarray
    """[N] int64, distinct."""
    candidate_ids: np.ndarray
    """[M] int64: the id of the query that each candidate matches."""
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        for name, dtype in _TYPES.items():
            value = getattr(self, name)
            dimensions = 2 if dtype.kind == "f" else 1
            if value.dtype != dtype or value.ndim != dimensions or not len(value):
                shape = "[N, D]" if dimensions == 2 else "[N]"
                raise UserError(f"{name}: {dtype} {shape} is accepted, not {value.dtype} {list(value.shape)}")
        if self.queries.shape[1] != self.candidates.shape[1]:
            raise UserError(
                f"queries {list(self.queries.shape)} and candidates {list(self.candidates.shape)}: both need the same "
                "embedding size"
            )
        for name, ids in (("queries", self.query_ids), ("candidates", self.candidate_ids)):
            rows = getattr(self, name)
            if len(ids) != len(rows):
                raise UserError(f"{name}: {len(rows)} rows but {len(ids)} ids")
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                raise UserError(f"{name}[{int(bad.argmax())}] holds a number that is not finite")
        self._check_matches()

    def _check_matches(self) -> None:
        values, counts = np.unique(self.query_ids, return_counts=True)
        if (counts > 1).any():
            raise UserError(f"query_ids: ids must be distinct; {values[counts > 1][0]} occurs {counts.max()} times")
        for name, ids, other, others in (
            ("query_ids", self.query_ids, "candidate", self.candidate_ids),
            ("candidate_ids", self.candidate_ids, "query", self.query_ids),
        ):
            alone = ~np.isin(ids, others)
            if alone.any():
                raise UserError(f"{name}[{int(alone.argmax())}] = {ids[alone.argmax()]}: no {other} has this id")

    def write(self, path: Path) -> None:
        """Write the file so that it appears whole or not at all."""
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TYPES}
        save_file(tensors, partial, metadata={"origin": json.dumps(asdict(self.origin))})
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Embeddings":
        """Read a file of this form, with or without metadata.

        Raises:
            UserError: the file, and what in it is missing or does not fit.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserError(f"{path}: no such file; `python -m distributed.embed` writes one from a run")
        try:
            with safe_open(path, framework="np") as file:
                found = set(file.keys())
                missing = [name for name in _TYPES if name not in found]
                if missing:
                    raise UserError(f"{path}: no tensor {missing[0]!r} in it; needed: {', '.join(_TYPES)}")
                parts = {name: file.get_tensor(name) for name in _TYPES}
                metadata = file.metadata() or {}
        except (SafetensorError, OSError, TypeError) as error:
            raise UserError(f"{path}: not a safetensors file of embeddings ({error})") from None
        try:
            return cls(**parts, origin=_read_origin(metadata))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _read_origin(metadata: dict[str, str]) -> Origin:
    if "origin" not in metadata:
        return Origin()
    try:
        return Origin(**json.loads(metadata["origin"]))
    except (ValueError, TypeError) as error:
        raise UserError(f"metadata 'origin' is not what `Embeddings.write` writes ({error})") from None
