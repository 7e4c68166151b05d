"""Where measurements go.

- `tracker`: what the loop tells, the file that follows a run, and all listeners as one.
- `wandb_run`: a run on Weights & Biases.
- `segments`: what Weights & Biases holds on this disk, read and mended.
- `sync`: what Weights & Biases lacks, sent from metrics.jsonl; `__main__`: the same as a command.
- `server`: whether its server can be reached, asked before anything starts.
- `examples`: retrievals chosen for people to look at.
- `redact`: configuration, provenance and command lines without secrets.
"""

from distributed.tracking.tracker import Tracker, open_tracker

__all__ = ["Tracker", "open_tracker"]
