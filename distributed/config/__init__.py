"""The one typed configuration tree: every knob of a run is declared here (or on the object it builds), once.

- `tree`: the knobs.
- `load`, `keys`: from a file and overrides to the tree, and the names of all keys.
- `objective`: the section whose keys are an objective's own arguments.
- `deepspeed`: a user's own settings of DeepSpeed, beside ours.
- `mistakes`: what is said of a file that does not fit.
"""

from distributed.config.load import dump, load, validate
from distributed.config.tree import Config

__all__ = ["Config", "dump", "load", "validate"]
