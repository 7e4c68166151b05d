"""A profiler's trace of three steps, and what is said of it."""

import gzip
import json

import torch

from distributed.clock import Clock
from distributed.profiling import StepProfiler
from distributed.run_directory import RunDirectory

CPU = torch.device("cpu")


def steps(run: RunDirectory, count: int) -> list[str]:
    """Train so many steps of nothing much, from step 101 on; return what was said."""
    said: list[str] = []
    clock = Clock(CPU)
    profiler = StepProfiler(run, 1, clock, CPU, said.append)
    for step in range(101, 101 + count):
        with clock.timing("encode"):
            torch.zeros(step).sum()
        profiler.stepped(step)
    profiler.close()
    assert not clock.labels
    return said


def test_three_steps_are_traced_with_their_parts(tmp_path, capfd):
    run = RunDirectory(tmp_path)
    path = tmp_path / "profile/rank-00001.json.gz"
    assert steps(run, 14) == [
        f"profile of steps 108 to 110: {path}; open it in https://ui.perfetto.dev or chrome://tracing: the rows "
        "'step: …' are the parts of train/ms_…"
    ]
    trace = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event["name"] == "step: encode" for event in trace) == 3
    sizes = {event["args"]["Input Dims"][0][0] for event in trace if event["name"] == "aten::sum"}
    assert sizes == {108, 109, 110}
    assert capfd.readouterr() == ("", "")


def test_too_few_steps_are_said(tmp_path):
    assert steps(RunDirectory(tmp_path), 8) == ["nothing was profiled: that takes 11 steps of one session"]
    assert not (tmp_path / "profile").exists()
