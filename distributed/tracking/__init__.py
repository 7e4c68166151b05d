"""Where measurements go: `metrics.jsonl` beside the run, and Weights & Biases."""

from distributed.tracking.tracker import Tracker

__all__ = ["Tracker"]
