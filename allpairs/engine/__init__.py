"""Runs an objective over a batch: dense, tiled or fused, alone or across the ranks of a process group."""

from allpairs.engine.exchange import global_value
from allpairs.engine.similarity import SimilarityStatistics, similarity_statistics

__all__ = ["SimilarityStatistics", "global_value", "similarity_statistics"]
