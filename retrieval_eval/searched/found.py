"""What a report keeps of a search, per direction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Searched:
    """How one direction was searched, and its queries by counting where they are compared."""

    by: str
    """``faiss-cpu``, ``faiss-gpu``; over how many Ray actors."""
    depth: int
    """Ranks up to it are what they are; of those beyond only that is known."""
    counted: int
    """Queries that were counted, because a tie that begins within the places of the metrics reaches beyond the list."""
    compared: np.ndarray  # [S] queries that were counted to compare
    exact: Mapping[str, np.ndarray]  # their counted values, [S] each, by the names of `Report.per_query`
    same_rank: np.ndarray  # [S] bool: the same expected rank, or both beyond what the list tells

    @classmethod
    def joined(cls, parts: "Sequence[Searched]", queries: Sequence[int]) -> "Searched":
        """Return the same of several folds, with these many queries, one after the other."""
        before = np.cumsum([0, *queries[:-1]])
        return cls(
            parts[0].by,
            min(part.depth for part in parts),
            sum(part.counted for part in parts),
            np.concatenate([part.compared + first for part, first in zip(parts, before, strict=True)]),
            {name: np.concatenate([part.exact[name] for part in parts]) for name in parts[0].exact},
            np.concatenate([part.same_rank for part in parts]),
        )
