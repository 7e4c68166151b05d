"""Tiles of the score matrix: of one fixed shape, so that a score has the same bits wherever its pair lies.

Embeddings may stay where they are, in memory or in a mapped file, in any real dtype: a tile gathers its rows, converts
them to float32 and moves them to the device that multiplies. On an accelerator the columns are moved once and kept.
"""

import numpy as np
import torch

# Shape suffixes: N queries, M gallery items, D embedding, T tile side.

TILE = {"cpu": 1024, "cuda": 4096}  # 4 MB and 64 MB of scores: the CPU's fits its second-level cache
SPARE = 0.8  # of the accelerator's free memory may hold the gallery


def tile_side(device: torch.device, asked: int | None) -> int:
    """Return the side of the tiles: `asked`, or what suits the device."""
    return asked or TILE.get(device.type, 1024)


class Blocks:
    """Rows of an embedding matrix in a given order, T at a time, as float32 on the device, padded with zero rows."""

    def __init__(self, X: torch.Tensor, order: np.ndarray, side: int, device: torch.device) -> None:
        self.X, self.side = X, side
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
            self.loaded = start
        return self.block_TD

    def moved_to(self, device: torch.device) -> "Blocks":
        """Return the same rows, in order, in float32 in the device's own memory, copied block by block."""
        X = torch.zeros(len(self), self.X.shape[1], device=device)
        for start in range(0, len(self), self.side):
            X[start : start + self.side] = self.at(start)[: len(self) - start]
        return Blocks(X, np.arange(len(self)), self.side, device)


class Tiles:
    """Tiles [T, T] of the scores of blocks of queries (rows) and of gallery items (columns).

    Memory: two tiles of scores (one for comparisons) and two blocks of embeddings, besides columns kept on a device.
    """

    def __init__(self, rows: Blocks, columns: Blocks) -> None:
        self.side, self.device = rows.side, rows.block_TD.device
        self.rows, self.columns = rows, columns
        X = columns.X
        if self.device.type == "cuda" and X.device != self.device:
            needed = 4 * len(columns) * X.shape[1]
            if needed < SPARE * torch.cuda.mem_get_info(self.device)[0]:
                self.columns = columns.moved_to(self.device)
        self.buffer_TT = torch.empty(self.side, self.side, device=self.device)
        self.work_TT = torch.empty(self.side, self.side, device=self.device)

    def filled(self, i: int, j: int) -> tuple[int, int]:
        """Rows and columns of tile (i, j) that are not padding."""
        return min(self.side, len(self.rows) - i), min(self.side, len(self.columns) - j)

    def scores(self, i: int, j: int) -> torch.Tensor:
        """Return the tile that starts at row place i and column place j, valid until the next call."""
        return torch.mm(self.rows.at(i), self.columns.at(j).T, out=self.buffer_TT)
