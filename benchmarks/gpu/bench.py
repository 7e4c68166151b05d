"""What a section is given: sizes, device, deadline, and where its rows go."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from allpairs.engine import fused
from benchmarks.gpu.record import Record
from benchmarks.gpu.timing import Call, measure


class Sizes(NamedTuple):
    """How large everything is."""

    batch: int
    """The batch at which nearly everything is measured."""
    largest: int
    """The batch that runs last, and the items of an evaluation."""
    dim: int
    eval_dim: int
    parity: tuple[int, ...]
    batches: tuple[int, ...]
    product: int
    """Rows of the matrices whose product is the ceiling."""
    seconds: float
    """Of the repetitions of one row, at most."""


FULL = Sizes(65536, 1 << 20, 768, 512, (8192, 16384, 65536), tuple(1 << n for n in range(13, 20)), 8192, 3.0)
SMALL = Sizes(600, 700, 64, 32, (512, 600), (512, 600), 256, 0.02)
"""Of a look at whether everything runs, on any machine."""


class Bench:
    """One run of all sections."""

    def __init__(self, record: Record, sizes: Sizes, device: str, minutes: float, peers: Path | None) -> None:
        self.record, self.sizes, self.device, self.peers = record, sizes, device, peers
        self.ends = time.monotonic() + 60 * minutes
        self.dtype = torch.bfloat16

    @property
    def fused(self) -> bool:
        """Whether the fused kernels run here."""
        return fused.usable(torch.empty(1, 16, dtype=self.dtype, device=self.device))

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.ends - time.monotonic()

    def row(self, section: str, name: str, seconds: float, call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Measure one row, which takes about `seconds`, and keep it; None where it is lost or skipped.

        What would pass the deadline is skipped and named; what fails is lost alone.
        """
        if self.left < seconds:
            self.record.skipped(section, name, f"would take about {seconds:.0f} s, {max(self.left, 0):.0f} s are left")
            return None
        found = None
        try:
            found = call()
        except Exception as error:
            self.record.lost(section, name, error)
        else:
            self.record.measured(section, name, **found)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return found

    def timed(self, section: str, name: str, seconds: float, call: Call, work: float = 0.0) -> dict[str, Any] | None:
        """Time `call`, as `row`; `work`: its operations, shown as TFLOP/s."""

        def found() -> dict[str, Any]:
            times: dict[str, Any] = measure(call, self.device, seconds=self.sizes.seconds, most=50)
            return {**times, "TFLOP/s": work / times["ms"] / 1e9} if work else times

        return self.row(section, name, seconds, found)
