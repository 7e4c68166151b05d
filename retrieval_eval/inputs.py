"""What `evaluate` accepts: two finite real matrices of one width, and refusals that name the rows.

Matrices may be memory-mapped files (`numpy.memmap`, ``numpy.load(mmap_mode="r")``) larger than memory: nothing here
copies or holds more than a block of one.
"""

import warnings
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError

Matrix = torch.Tensor | np.ndarray
SHOWN = 5  # rows named in a refusal
BLOCK = 1 << 20  # numbers looked at together: 8 MB as float64


def rows(indices: Sequence[int] | np.ndarray, ids: Any = None) -> str:
    """Name the first few rows, with their ids where given: ``rows 3 (id 17), 9 (id 40) and 12 more``."""
    shown = [str(i) if ids is None else f"{i} (id {ids[i]})" for i in indices[:SHOWN]]
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {', '.join(shown)}{more}"


def as_tensor(values: Matrix) -> torch.Tensor:
    """Return `values` as a tensor over the same memory or file, for reading only."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="))  # torch reads neither: such arrays are copied whole
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # we never write
        return torch.from_numpy(array)


def blocks(X: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the rows of X [rows, D] in float32 blocks of bounded size, each with the index of its first row."""
    step = max(1, BLOCK // X.shape[1])
    for start in range(0, len(X), step):
        yield start, X[start : start + step].to(torch.float32)


def unit_rows(block: torch.Tensor) -> torch.Tensor:
    """Return the rows of a float32 block [rows, D] at length 1, in float32; a zero row stays zero.

    Lengths and quotients are taken in float64, where no float32 number's square overflows or vanishes.
    """
    wide = block.to(torch.float64)
    lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return (wide / lengths.where(lengths > 0, 1)).to(torch.float32)


def normalised(X: torch.Tensor) -> torch.Tensor:
    """Return all rows of X [rows, D] at length 1: a float32 copy on the device of X."""
    unit = torch.empty(X.shape, dtype=torch.float32, device=X.device)
    for start, block in blocks(X):
        unit[start : start + len(block)] = unit_rows(block)
    return unit


def checked(values: Matrix, name: str, ids: Any = None) -> tuple[torch.Tensor, float]:
    """Return `values` as a matrix [rows, D] where it lies, and its largest norm; UserError names what is not finite."""
    X = _readable(values, name)
    if X.ndim != 2:
        raise UserError(f"{name} must be a matrix [rows, dimensions], got shape {list(X.shape)}")
    if X.dtype == torch.bool or X.is_complex():
        raise UserError(f"{name} must hold real numbers, got {X.dtype}")
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise UserError(f"{name} is empty (shape {list(X.shape)}): nothing to evaluate")
    if ids is not None and len(ids) != X.shape[0]:
        raise UserError(f"{name} has {X.shape[0]} rows but {len(ids)} ids")
    # A float64 norm of float32 numbers cannot overflow: it is non-finite exactly where the row is.
    bad, largest = _rows_where(X, lambda norms: norms.isfinite().logical_not())
    if bad:
        raise UserError(f"{name} holds NaN or infinite values in {rows(bad, ids)}")
    return X, largest


def pair_where_they_lie(
    queries: Matrix, gallery: Matrix, query_ids: Any = None, gallery_ids: Any = None, *, cosine: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides as matrices over the caller's memory or files, any real dtype, whose dot products stay finite.

    With `cosine` their rows may have any finite length, since whoever ranks them normalises them. UserError otherwise.
    """
    Q, largest_query = checked(queries, "queries", query_ids)  # [N, D]
    G, largest_item = checked(gallery, "gallery", gallery_ids)  # [M, D]
    if Q.shape[1] != G.shape[1]:
        raise UserError(f"queries have {Q.shape[1]} dimensions but the gallery has {G.shape[1]}")
    # |q·g| <= |q||g|, also for every partial sum: a finite bound means finite scores.
    limit = torch.finfo(torch.float32).max
    if not cosine and largest_query * largest_item >= limit:
        bad, _ = _rows_where(Q, lambda norms: norms * largest_item >= limit)
        raise UserError(
            f"scores of queries {rows(bad, query_ids)} could overflow float32: rank by cosine similarity (cosine=True,"
            " --cosine), which normalises the embeddings"
        )
    return Q, G


def pair_to_rank(queries: Matrix, gallery: Matrix, *, cosine: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides as `pair_where_they_lie` does, for `cosine` as normalised copies."""
    Q, G = pair_where_they_lie(queries, gallery, cosine=cosine)
    return (normalised(Q), normalised(G)) if cosine else (Q, G)


def _readable(values: Any, name: str) -> torch.Tensor:
    """Return what a caller gives as a matrix as a tensor; UserError for anything that has no numbers in rows."""
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided or values.is_meta:
            what = "the device meta" if values.is_meta else str(values.layout).removeprefix("torch.")
            raise UserError(
                f"{name} must be a dense tensor that holds numbers, got one of {what}; accepted: to_dense()"
            )
        return as_tensor(values)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of several lengths, or tensors that numpy cannot read
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} must be a matrix [rows, dimensions], got a {type(values).__name__} that is none ({reason[:120]})"
            "; accepted: rows of one length, or torch.stack of tensors"
        ) from None
    if array.dtype.kind not in "biufc":
        raise UserError(f"{name} must hold real numbers, got a {type(values).__name__} of {array.dtype}")
    return as_tensor(array)


def _rows_where(X: torch.Tensor, condition: Any) -> tuple[list[int], float]:
    """Rows whose float64 norm meets `condition`, and the largest norm."""
    found: list[int] = []
    largest = -inf
    for start, block in blocks(X):
        norms = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64)
        found += (start + condition(norms).nonzero().flatten()).tolist()
        largest = max(largest, float(norms.max()))
    return found, largest
