"""Pair objectives, the engine that runs them over large batches, and the encoders they train."""

__version__ = "0.1.0"
