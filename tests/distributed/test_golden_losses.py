"""The first twenty losses of a tiny run: a change that is not meant to change training changes none of them.

`python -m pytest tests/distributed/test_golden_losses.py --renew` writes `golden_losses.json` after a change that is.
"""

import json
import platform
from pathlib import Path

import pytest
import torch

from tests.distributed.test_loop import rows, train

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20


def machine_kind() -> str:
    """Name what decides the last bit: processor, its vector width as torch uses it, torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    family = [line.partition(":")[2].strip() for line in lines if line.startswith(("cpu family", "model\t"))][:2]
    return " ".join([platform.machine(), *family, torch.backends.cpu.get_cpu_capability(), torch.__version__])


def test_the_first_losses_are_the_golden_ones(tiny_config, request: pytest.FixtureRequest) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # or the order of the sums is the machine's
    try:
        run, *_ = train(tiny_config(train={"epochs": 5, "global_batch": 22, "log_every": 1}))
    finally:
        torch.set_num_threads(threads)
    losses = list(rows(run, "train/loss").values())[:STEPS]
    assert len(losses) == STEPS
    if request.config.getoption("--renew"):
        GOLDEN.write_text(json.dumps({"machine": machine_kind(), "losses": losses}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    if golden["machine"] == machine_kind():
        assert losses == golden["losses"]
    else:
        assert losses == pytest.approx(golden["losses"], rel=1e-6)
