"""What `evaluate` accepts: two finite float32 matrices of one width, and refusals that name the rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError

Embeddings = torch.Tensor | np.ndarray
SHOWN = 5  # rows named in a refusal


def rows(indices: Sequence[int] | np.ndarray, ids: Any = None) -> str:
    """Name the first few rows, with their ids where given: ``rows 3 (id 17), 9 (id 40) and 12 more``."""
    shown = [str(i) if ids is None else f"{i} (id {ids[i]})" for i in indices[:SHOWN]]
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {', '.join(shown)}{more}"


def matrix(
    values: Embeddings, name: str, ids: Any = None, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `values` as a finite float32 matrix [rows, D], and its rows' norms; UserError names the bad rows."""
    X = values.detach() if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if X.ndim != 2:
        raise UserError(f"{name} must be a matrix [rows, dimensions], got shape {list(X.shape)}")
    if X.dtype == torch.bool or X.is_complex():
        raise UserError(f"{name} must hold real numbers, got {X.dtype}")
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise UserError(f"{name} is empty (shape {list(X.shape)}): nothing to evaluate")
    if ids is not None and len(ids) != X.shape[0]:
        raise UserError(f"{name} has {X.shape[0]} rows but {len(ids)} ids")
    X = X.to(device=device, dtype=torch.float32)
    # A float64 norm of float32 numbers cannot overflow: it is non-finite exactly where the row is.
    norms = torch.linalg.vector_norm(X, dim=1, dtype=torch.float64)
    bad = norms.isfinite().logical_not().nonzero().flatten().tolist()
    if bad:
        raise UserError(f"{name} holds NaN or infinite values in {rows(bad, ids)}")
    return X, norms


def pair_of_matrices(
    queries: Embeddings, gallery: Embeddings, query_ids: Any = None, gallery_ids: Any = None, device: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides as float32 matrices on one device whose dot products cannot overflow; UserError otherwise."""
    if device is None and isinstance(queries, torch.Tensor):
        device = str(queries.device)
    Q, query_norms = matrix(queries, "queries", query_ids, device)  # [N, D]
    G, gallery_norms = matrix(gallery, "gallery", gallery_ids, Q.device)  # [M, D]
    if Q.shape[1] != G.shape[1]:
        raise UserError(f"queries have {Q.shape[1]} dimensions but the gallery has {G.shape[1]}")
    # |q·g| <= |q||g|, also for every partial sum: a finite bound means finite scores.
    bad = (query_norms * gallery_norms.max() >= torch.finfo(torch.float32).max).nonzero().flatten().tolist()
    if bad:
        raise UserError(f"scores of queries {rows(bad, query_ids)} could overflow float32: normalise the embeddings")
    return Q, G
