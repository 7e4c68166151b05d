"""Where a step's time goes: each moment belongs to one part, on the clock of the device that computes.

On a GPU the marks are CUDA events, put into its queue without waiting for it: a part's time is what the GPU spent or
idled between them, also where the host ran ahead. Elsewhere it is the host's clock.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

PARTS = ("read", "copy", "encode", "loss", "agree", "backward", "sync", "optimizer", "save")
"""What a step does, in this order: waits for samples, copies them to the device, encodes, computes the loss over
everybody's embeddings (their exchange included), waits for the other ranks' word, computes gradients (with
`train.micro_batch` encoding again), waits for what is left of their average, updates (under ZeRO and FSDP with the
exchange of norms and weights); and it waits for a checkpoint's copy or the one before."""

Mark = float | torch.cuda.Event


class Clock:
    """Adds up seconds by part; a part inside another interrupts it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._part: str | None = None
        self._marks: list[tuple[Mark, str | None]] = []
        """When which part began; None: no part."""
        self._spare: list[torch.cuda.Event] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self.labels = False
        """Whether parts are named in a profiler's trace."""

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count the block under `part`, one of `PARTS`."""
        outer = self._part
        with ExitStack() as label:
            if self.labels:
                label.enter_context(torch.profiler.record_function(f"step: {part}"))
            self._switch(part)
            try:
                yield
            finally:
                self._switch(outer)

    def sync_follows(self, loss: Tensor) -> None:
        """Count under ``sync``, within `timing`, what comes after the last gradient in the backward pass of `loss`.

        Callbacks that autograd's engine runs at its end come in the order in which they were asked for: this one, asked
        for at the loss, precedes those in which data parallelism waits for its collectives.
        """

        def ask(gradient: Tensor) -> None:
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._switch("sync"))

        loss.register_hook(ask)

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, in the order of `PARTS`; on a GPU it waits for it."""
        if self._cuda and self._marks:
            self._marks[-1][0].synchronize()  # type: ignore[union-attr]
        self._fold()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return {part: seconds[part] for part in PARTS if part in seconds}

    def _switch(self, part: str | None) -> None:
        self._part = part
        self._marks.append((self._now(), part))
        if len(self._marks) > 100:
            self._fold()

    def _now(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # autograd's threads have a device of their own
        return event

    def _fold(self) -> None:
        """Add up the marks that the device has passed, but for the newest of them, where what follows begins."""
        done = 0
        for (start, part), (end, _) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(start, float) or isinstance(end, float):
                seconds = end - start  # type: ignore[operator]
            elif end.query():
                seconds = start.elapsed_time(end) / 1000
                self._spare.append(start)
            else:
                break
            if part is not None:
                self._seconds[part] += seconds
            done += 1
        del self._marks[:done]
