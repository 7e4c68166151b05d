"""How long the embeddings are, which decides what ranking by the inner product means.

Rows of one length are ranked alike by the inner product and by cosine similarity. Where lengths differ, the inner
product prefers long gallery items, and the two rankings may be far apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retrieval_eval.inputs import Matrix, as_tensor, blocks

ROUNDING = 0.02
"""Norms whose largest is at most 2 % above their smallest do not vary: vectors that were normalised in bfloat16, the
coarsest type in use, are up to 0.8 % off 1 on either side, by the rounding of their length and of the quotient."""


@dataclass(frozen=True)
class Norms:
    """Lengths of the rows of one side, in float64 of their float32 values."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, matrix: Matrix) -> "Norms":
        """Measure the rows of a matrix [N, D]."""
        lengths = torch.cat(
            [
                torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).cpu()
                for _, block in blocks(as_tensor(matrix))
            ]
        )
        return cls(float(lengths.min()), float(np.median(lengths.numpy())), float(lengths.max()))

    @property
    def vary(self) -> bool:
        """Whether they differ by more than rounding leaves of equal ones."""
        return self.most > (1 + ROUNDING) * self.least

    def __str__(self) -> str:
        return f"{self.least:.4g} to {self.most:.4g}, median {self.median:.4g}"


def similarity_record(queries: Norms, gallery: Norms, *, cosine: bool, both: bool) -> dict[str, Any]:
    """Return what the manifest of a measurement says of the similarity; `both`: the gallery asks too."""
    vary = gallery.vary or (both and queries.vary)  # a query's own length changes no ranking of its answers
    return {
        "similarity": "cosine" if cosine else "inner product",
        "norms": {
            side: {"min": norms.least, "median": norms.median, "max": norms.most}
            for side, norms in (("queries", queries), ("gallery", gallery))
        },
        "norms_vary": vary,
    }


def similarity_note(manifest: Mapping[str, Any]) -> str | None:
    """Return one line on what was ranked by, from a measurement's manifest; None if it makes no difference."""
    cosine = manifest["similarity"] == "cosine"
    if not manifest["norms_vary"]:
        return "ranked by cosine similarity (norms do not vary)" if cosine else None
    norms = ", ".join(
        f"{side} {Norms(each['min'], each['median'], each['max'])}" for side, each in manifest["norms"].items()
    )
    if cosine:
        return f"ranked by cosine similarity: embeddings are normalised first (norms vary: {norms})"
    return f"norms vary: {norms}; ranked by the inner product; --cosine normalises first"
