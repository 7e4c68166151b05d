"""What is counted, and how it is cut into units of work."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from allpairs.errors import UserError
from retrieval_eval.counting import GallerySlice, SliceCounts
from retrieval_eval.inputs import Matrix, as_tensor
from retrieval_eval.positives import Positives
from retrieval_eval.tiles import TileLayout, tile_side

ROW_BLOCKS = 32  # at most, per shard: each stores the counts of the shard's columns once


@dataclass(frozen=True, eq=False)
class Problem:
    """Queries [N, D] and gallery [M, D], wherever they lie, and their positives."""

    queries: Matrix
    gallery: Matrix
    positives: Positives
    both: bool
    device: torch.device
    """What multiplies."""
    tile: int | None = None
    """Side of the tiles; None: what suits the device."""
    cosine: bool = False
    """Whether rows are normalised before they are multiplied."""

    @property
    def side(self) -> int:
        """The side of the tiles."""
        return tile_side(self.device, self.tile)

    @cached_property
    def layout(self) -> TileLayout:
        """The order on the grid."""
        return TileLayout(self.positives)

    def shard_columns(self, shards: int) -> list[range]:
        """Cut the tile columns into `shards` ranges as even as may be; UserError if there are not enough of them."""
        tiles = -(-len(self.gallery) // self.side)
        if not isinstance(shards, int) or not 1 <= shards <= tiles:
            raise UserError(
                f"shards={shards!r}: the gallery of {len(self.gallery)} has {tiles} tile columns of {self.side}"
                f"; accepted: 1 to {tiles}"
            )
        edges = [min(tiles * n // shards * self.side, len(self.gallery)) for n in range(shards + 1)]
        return [range(*edge) for edge in pairwise(edges)]

    def row_blocks(self) -> list[range]:
        """Cut the tile rows into ranges, the same for every number of shards."""
        tiles = -(-len(self.queries) // self.side)
        step = -(-tiles // ROW_BLOCKS) * self.side
        return [range(start, min(start + step, len(self.queries))) for start in range(0, len(self.queries), step)]

    def shard(self, columns: range) -> GallerySlice:
        """Make the shard that counts these columns."""
        Q, G = as_tensor(self.queries), as_tensor(self.gallery)
        return GallerySlice.of_matrices(
            Q, G, self.layout, columns, both=self.both, side=self.side, device=self.device, cosine=self.cosine
        )


@dataclass(frozen=True)
class Unit:
    """One piece of work: a pass over a shard's columns and a range of rows, for the positives' scores or the counts."""

    kind: Literal["scores", "counts"]
    shard: int
    rows: range

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.kind}-{self.shard}-{self.rows.start}"


Result = SliceCounts | np.ndarray
"""Of a unit: counts, or the positives' scores."""


def work(shard: GallerySlice, unit: Unit) -> Result:
    """Do a unit of `shard`."""
    return shard.positive_scores(unit.rows) if unit.kind == "scores" else shard.count(unit.rows)
