"""Tiles of the score matrix: of one fixed shape, so that a score has the same bits wherever its pair lies.

Embeddings may stay where they are, in memory or in a mapped file, in any real dtype: a tile gathers its rows, converts
them to float32 and moves them to the device that multiplies. On an accelerator the columns are moved once and kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from retrieval_eval.inputs import unit_rows
from retrieval_eval.positives import Positives

# Shape suffixes: N queries, M gallery items, D embedding, T tile side.

TILE = {"cpu": 1024, "cuda": 4096}  # 4 MB and 64 MB of scores: the CPU's fits its second-level cache
SPARE = 0.8  # of the accelerator's free memory may hold the gallery


def tile_side(device: torch.device, asked: int | None) -> int:
    """Return the side of the tiles: `asked`, or what suits the device."""
    return asked or TILE.get(device.type, 1024)


class Blocks:
    """Rows of an embedding matrix in a given order, T at a time, as float32 on the device, padded with zero rows.

    With `cosine` at length 1: each block as it is loaded, so that no normalised copy of a mapped file is ever made.
    """

    def __init__(
        self, X: torch.Tensor, order: np.ndarray, side: int, device: torch.device, *, cosine: bool = False
    ) -> None:
        self.X, self.side, self.cosine = X, side, cosine
        self.order = torch.from_numpy(order).to(X.device)
        self.block_TD = torch.zeros(side, X.shape[1], device=device)
        self.loaded = -1

    def __len__(self) -> int:
        return len(self.order)

    def at(self, start: int) -> torch.Tensor:
        """Return the block that begins at place `start`, valid until the next call."""
        if self.loaded != start:
            chosen = self.order[start : start + self.side]
            filled = self.block_TD[: len(chosen)]
            self.block_TD[len(chosen) :].zero_()
            if self.X.dtype == torch.float32 and self.X.device == filled.device:
                torch.index_select(self.X, 0, chosen, out=filled)
            else:
                filled.copy_(self.X.index_select(0, chosen))
            if self.cosine:
                filled.copy_(unit_rows(filled))
            self.loaded = start
        return self.block_TD

    def moved_to(self, device: torch.device) -> "Blocks":
        """Return the same rows, in order, as `at` gives them, in the device's own memory, copied block by block."""
        X = torch.zeros(len(self), self.X.shape[1], device=device)
        for start in range(0, len(self), self.side):
            X[start : start + self.side] = self.at(start)[: len(self) - start]
        return Blocks(X, np.arange(len(self)), self.side, device)


class Tiles(ABC):
    """Tiles [T, T] of the scores of `rows` queries and `columns` gallery items, which are made one at a time.

    Memory: two tiles of scores, one of them for comparisons.
    """

    def __init__(self, rows: int, columns: int, side: int, device: torch.device) -> None:
        self.size = rows, columns
        self.side, self.device = side, device
        self.buffer_TT = torch.empty(side, side, device=device)
        self.work_TT = torch.empty(side, side, device=device)

    def filled(self, i: int, j: int) -> tuple[int, int]:
        """Rows and columns of tile (i, j) that are not padding."""
        return min(self.side, self.size[0] - i), min(self.side, self.size[1] - j)

    @abstractmethod
    def scores(self, i: int, j: int) -> torch.Tensor:
        """Return the tile that starts at row place i and column place j, valid until the next call."""


class MatrixTiles(Tiles):
    """Tiles of dot products of blocks of queries (rows) and of gallery items (columns).

    Memory: two blocks of embeddings, besides columns kept on a device.
    """

    def __init__(self, rows: Blocks, columns: Blocks) -> None:
        super().__init__(len(rows), len(columns), rows.side, rows.block_TD.device)
        self.rows, self.columns = rows, columns
        X = columns.X
        if self.device.type == "cuda" and X.device != self.device:
            needed = 4 * len(columns) * X.shape[1]
            if needed < SPARE * torch.cuda.mem_get_info(self.device)[0]:
                self.columns = columns.moved_to(self.device)

    def scores(self, i: int, j: int) -> torch.Tensor:
        """Return the product of the blocks that start at row place i and column place j."""
        return torch.mm(self.rows.at(i), self.columns.at(j).T, out=self.buffer_TT)


@dataclass(frozen=True, eq=False)
class SlotOrder:
    """The pairs of one direction, in slots: by the place of their query on the grid, then as in `positives`."""

    positives: Positives
    order: np.ndarray  # [N] the query at each place

    @cached_property
    def counts(self) -> np.ndarray:
        """Positives of the query at each place, [N]."""
        return self.positives.counts[self.order]

    @cached_property
    def starts(self) -> np.ndarray:
        """First slot of each place, and the number of slots, [N + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def pairs(self) -> np.ndarray:
        """Index into `positives.indices` of the pair in each slot, [P]."""
        shift = self.positives.offsets[self.order] - self.starts[:-1]
        return np.arange(self.starts[-1]) + np.repeat(shift, self.counts)

    def slots(self, start: int, stop: int) -> slice:
        """Slots of the places from `start` to before `stop`."""
        return slice(int(self.starts[start]), int(self.starts[stop]))


class TileLayout:
    """Orders of queries (rows) and gallery items (columns), and both directions' slots.

    `to_reverse` [P] holds, for each pair of the reverse direction, its index in the forward one.
    """

    def __init__(self, positives: Positives) -> None:
        # Queries by their first positive, then items by their first query in that order: groups become neighbours.
        has = np.flatnonzero(positives.counts)
        first_item = np.full(len(positives), positives.gallery)
        first_item[has] = positives.indices[positives.offsets[has]]
        rows = np.argsort(first_item, kind="stable")
        self.row_of = _inverse(rows)
        first_row = np.full(positives.gallery, len(rows))  # items of no query go last
        np.minimum.at(first_row, positives.indices, self.row_of[positives.owners])
        columns = np.argsort(first_row, kind="stable")
        self.column_of = _inverse(columns)
        self.forward = SlotOrder(positives, rows)
        self.to_reverse = np.argsort(positives.indices, kind="stable")
        self.backward = SlotOrder(positives.transposed(), columns)

    def pairs_in(self, rows: range, columns: range) -> np.ndarray:
        """Indices of the positive pairs in a rectangle of places, ascending by slot."""
        pairs = self.forward.pairs[self.forward.slots(rows.start, rows.stop)]
        column = self.column_of[self.forward.positives.indices[pairs]]
        return pairs[(column >= columns.start) & (column < columns.stop)]


def _inverse(order: np.ndarray) -> np.ndarray:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 matrix products in IEEE float32 inside the block, without gradients; restore the settings after.

    bfloat16 scores tie a third of the queries of a 5K gallery, and TF32 keeps the same ten bits of mantissa as half.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
