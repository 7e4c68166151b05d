"""Where a training run stands in its data: all that a resume needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """The next sample to read is number `sample` of epoch `epoch`'s order, which `seed` alone determines.

    It counts samples of the *global* order, so the same position resumes exactly at any world size.
    """

    seed: int
    epoch: int = 0
    sample: int = 0
