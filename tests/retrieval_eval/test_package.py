"""`retrieval_eval.evaluate` is the function, whatever was imported before it, and the command beside it."""

import subprocess
import sys

import pytest

SIX_HUNDRED = "; import numpy as np; assert evaluate(np.eye(3), np.eye(3), [0, 1, 2], [0, 1, 2]).metrics['rsum'] == 600"


@pytest.mark.parametrize(
    "program",
    [
        "import retrieval_eval.evaluate; from retrieval_eval import evaluate" + SIX_HUNDRED,
        "import importlib; m = importlib.import_module('retrieval_eval.evaluate.__main__'); assert m.app"
        "; from retrieval_eval import evaluate" + SIX_HUNDRED,
    ],
)
def test_the_function_stays_in_place(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_beside_it_starts_without_a_warning():
    command = [sys.executable, "-W", "error", "-m", "retrieval_eval.evaluate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "--run" in done.stdout
