"""Every pair objective: what an anchor must know about its row, and the weight it then gives each pair."""

from allpairs.objectives.base import PairObjective, from_scores, weights_from_scores
from allpairs.objectives.catalogue import arguments, make, names

__all__ = ["PairObjective", "arguments", "from_scores", "make", "names", "weights_from_scores"]
