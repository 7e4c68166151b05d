"""The one typed configuration tree: every knob of a run is declared here (or on the object it builds), once."""

from distributed.config.load import dump, load, validate
from distributed.config.tree import Config

__all__ = ["Config", "dump", "load", "validate"]
