"""Every pair objective: what an anchor must know about its row, and the weight it then gives each pair.

- `base`: how objectives are called, on embeddings and on scores.
- `catalogue`: objectives by name.
- `triplet`, `triplet_hn`, `vlc`, `nt_xent`, `nt_xent_hn`, `unified`, `ssp`, `rsp`, `goal`: one positive per anchor.
- `circle`, `binomial_deviance`, `lifted`, `multi_similarity`, `smooth_ap`, `siglip`: positives from ids.
- `hard_negative`, `softmax`, `learned_scale`: what several of them share.
- `weighting`, `polynomial`: weighted similarities.
- `checks`: values that users give.
"""

from allpairs.objectives.base import (
    PairObjective,
    from_scores,
    shares_from_scores,
    weights_from_scores,
    weights_of_triplets,
)
from allpairs.objectives.catalogue import arguments, hint, make, names

__all__ = [
    "PairObjective",
    "arguments",
    "from_scores",
    "hint",
    "make",
    "names",
    "shares_from_scores",
    "weights_from_scores",
    "weights_of_triplets",
]
