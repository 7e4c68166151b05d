"""Which gallery items answer which query: ragged sets, by id equality or by an explicit list, never by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError


@dataclass(frozen=True, eq=False)
class Positives:
    """Ragged sets in compressed rows: query q's are ``indices[offsets[q]:offsets[q + 1]]``, ascending, distinct."""

    offsets: np.ndarray  # [Q + 1] int64
    indices: np.ndarray  # [P] int64
    gallery: int  # number of gallery items the indices point into

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.offsets) - 1

    def of(self, query: int) -> np.ndarray:
        """Return the gallery indices of one query's positives."""
        return self.indices[self.offsets[query] : self.offsets[query + 1]]

    def entries(self, queries: np.ndarray) -> np.ndarray:
        """Return where in `indices` the positives of some queries are, in the order of the queries."""
        counts = self.counts[queries]
        offsets = _offsets(counts)
        return np.arange(offsets[-1]) + np.repeat(self.offsets[queries] - offsets[:-1], counts)

    def take(self, queries: np.ndarray) -> "Positives":
        """Return the positives of some queries alone."""
        return Positives(_offsets(self.counts[queries]), self.indices[self.entries(queries)], self.gallery)

    @property
    def counts(self) -> np.ndarray:
        """Positives per query, [Q]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The query of each entry of `indices`, [P]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def contain(self, items: np.ndarray) -> np.ndarray:
        """Return which of the gallery indices [Q, K], row by row, are positives of their query: [Q, K] bool."""
        pairs = self.owners * self.gallery + self.indices  # ascending: both parts are
        asked = items + np.arange(len(self))[:, None] * self.gallery
        place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
        return pairs[place] == asked

    def transposed(self) -> "Positives":
        """Return the same pairs with the gallery asking: item g's positives are the queries that hold g."""
        order = np.argsort(self.indices, kind="stable")
        counts = np.bincount(self.indices, minlength=self.gallery)
        return Positives(_offsets(counts), self.owners[order], len(self))

    @classmethod
    def from_ids(cls, query_ids: Any, gallery_ids: Any) -> "Positives":
        """Pair every query [Q] with all gallery items [G] of the same id (integers or strings)."""
        query, gallery = as_ids(query_ids, "query_ids"), as_ids(gallery_ids, "gallery_ids")
        if query.dtype.kind != gallery.dtype.kind:
            raise UserError(
                f"query_ids are {query.dtype} and gallery_ids are {gallery.dtype}: ids of one kind are needed"
            )
        order = np.argsort(gallery, kind="stable")
        first = np.searchsorted(gallery, query, side="left", sorter=order)
        counts = np.searchsorted(gallery, query, side="right", sorter=order) - first
        offsets = _offsets(counts)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return cls(offsets, order[np.repeat(first, counts) + within], len(gallery))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], gallery: int) -> "Positives":
        """Take ``lists[q]``, the gallery indices of query q; UserError for an index that is not in 0..gallery-1."""
        rows = []
        for query, items in enumerate(lists):
            try:
                row = np.asarray(items)
            except ValueError:  # lists of several lengths in it
                row = np.empty(1, object)
            if row.size == 0:
                row = row.astype(np.int64)
            if row.ndim != 1 or row.dtype.kind not in "iu":
                raise UserError(f"positives[{query}] must be a list of gallery indices (integers), got {items!r}")
            outside = row[(row < 0) | (row >= gallery)]
            if outside.size:
                raise UserError(f"positives[{query}] holds {outside[0]}; accepted: gallery indices 0 to {gallery - 1}")
            rows.append(np.unique(row).astype(np.int64))
        indices = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return cls(_offsets(np.array([len(row) for row in rows], np.int64)), indices, gallery)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def as_ids(values: Any, name: str) -> np.ndarray:
    """Return ids [N] as int64 or as strings; UserError for anything else."""
    accepted = "one list of integers or of strings"
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    try:
        ids = np.asarray(values)
    except ValueError:
        raise UserError(
            f"{name} must be {accepted}, got a {type(values).__name__} of lists of several lengths"
        ) from None
    if ids.ndim == 0:
        raise UserError(f"{name} must be {accepted}, got {values!r}"[:200])
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iuU"):
        hint = "; accepted: .astype(int) of an array, .long() of a tensor" if ids.dtype.kind == "f" else ""
        raise UserError(f"{name} must be {accepted}, got {ids.ndim} dimensions of {ids.dtype}{hint}")
    if ids.dtype.kind == "U" and isinstance(values, list | tuple):
        other = next((place for place, value in enumerate(values) if not isinstance(value, str)), None)
        if other is not None:  # numpy would make it a string
            raise UserError(f"{name} must be {accepted}, got both: {name}[{other}] is {values[other]!r}")
    if ids.dtype == np.uint64 and ids.size and ids.max() > np.iinfo(np.int64).max:
        raise UserError(
            f"{name} holds {ids.max()}; accepted: integers below 2⁶³, a larger one would meet a negative one"
        )
    # One width per kind, so that int32 ids meet int64 ids.
    return ids if ids.dtype.kind == "U" else ids.astype(np.int64)
