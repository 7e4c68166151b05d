"""Runs an objective over a batch: dense, tiled or fused, alone or across the ranks of a process group.

- `contract`: what an objective is to the engine, and the tiles it sees.
- `statistics`: what an anchor may need to know of its row, merged tile by tile and rank by rank.
- `batch`: one rank's rows, checked and normalised.
- `rows`: one side's embeddings, normalised where they are used.
- `global_batch`: what every rank knows of all rows, and the tiles between them.
- `chunks`: which candidates a tile looks at, and which of them have their gradients exchanged together.
- `exchange`: which rank owns which rows, and how the ranks exchange them.
- `agreement`: what the ranks compare before anyone computes.
- `products`: matrix products that no autocast or float32 shortcut around the call changes, and their derivatives.
- `backend`: which of the following computes a call.
- `dense`: the whole score matrix and autograd, the truth.
- `tiled`: tile by tile, in O(B·D + tile²) memory.
- `sparse`: gradients of objectives on two columns per anchor.
- `fused`: tiles by Triton kernels.
- `similarity`: mean positive and hardest-negative similarity of a batch.
"""

from allpairs.engine.agreement import global_value
from allpairs.engine.similarity import SimilarityStatistics, similarity_statistics

__all__ = ["SimilarityStatistics", "global_value", "similarity_statistics"]
