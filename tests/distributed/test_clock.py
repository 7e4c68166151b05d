"""Each moment of a step belongs to one part."""

import time

import pytest
import torch
from torch import Tensor

from distributed.clock import PARTS, Clock

CPU = torch.device("cpu")


def test_a_part_inside_another_interrupts_it_and_parts_add_up():
    clock = Clock(CPU)
    began = time.perf_counter()
    for _ in range(60):  # more marks than are kept
        with clock.timing("backward"):
            time.sleep(0.001)
            with clock.timing("encode"):
                time.sleep(0.002)
    took = time.perf_counter() - began
    seconds = clock.take()
    assert list(seconds) == ["encode", "backward"] == [part for part in PARTS if part in seconds]
    assert seconds["encode"] >= 60 * 0.002
    assert seconds["backward"] >= 60 * 0.001
    assert seconds["encode"] < took - 60 * 0.001
    assert sum(seconds.values()) == pytest.approx(took, rel=0.05)
    assert clock.take() == {}


def test_outside_parts_nothing_is_counted_and_an_error_ends_its_part():
    clock = Clock(CPU)
    with clock.timing("read"):
        pass
    time.sleep(0.05)
    with pytest.raises(ValueError, match="broken"), clock.timing("read"):
        raise ValueError("broken")
    time.sleep(0.05)
    with clock.timing("loss"):
        pass
    seconds = clock.take()
    assert set(seconds) == {"read", "loss"}
    assert sum(seconds.values()) < 0.05


class Slow(torch.autograd.Function):
    """The identity, whose gradient takes its time."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        time.sleep(0.05)
        return gradient


def test_the_wait_after_the_last_gradient_is_sync():
    clock = Clock(CPU)
    weight = torch.ones(3, requires_grad=True)

    def waits(gradient: Tensor) -> None:  # as data parallelism does, once the last gradient is there
        torch.autograd.Variable._execution_engine.queue_callback(lambda: time.sleep(0.08))

    weight.register_hook(waits)
    loss = Slow.apply(weight).sum()
    clock.sync_follows(loss)
    with clock.timing("backward"):
        loss.backward()
    seconds = clock.take()
    assert 0.05 <= seconds["backward"] < 0.08 <= seconds["sync"]


class Queue:
    """A GPU's queue: it takes a second for each mark, and stands at `reached`."""

    def __init__(self) -> None:
        self.length, self.reached, self.made = 0, 0, 0

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        self.made += 1
        return Event(self)


class Event:
    """A mark in it, as `torch.cuda.Event`."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def record(self, stream: None) -> None:
        self.queue.length += 1
        self.at = self.queue.length

    def query(self) -> bool:
        return self.at <= self.queue.reached

    def synchronize(self) -> None:
        self.queue.reached = max(self.queue.reached, self.at)

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query()
        return 1000.0 * (end.at - self.at)


def test_on_a_gpu_the_marks_are_in_its_queue_and_nobody_waits_until_they_are_read(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(torch.cuda, "Event", queue.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = Clock(torch.device("cuda"))
    for step in range(100):
        with clock.timing("encode"), clock.timing("loss"):
            pass
        assert queue.reached == max(0, 4 * (step - 2))
        queue.reached = max(0, 4 * (step - 1))  # the GPU is two steps behind
    assert clock.take() == {"encode": 200.0, "loss": 100.0}
    assert queue.reached == queue.length == 400
    assert queue.made < 150  # used again
