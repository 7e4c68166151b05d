"""`retrieval_eval.evaluate` is the function, whatever was imported before it; the import costs no torch."""

import subprocess
import sys

import pytest

SIX_HUNDRED = "; import numpy as np; assert evaluate(np.eye(3), np.eye(3), [0, 1, 2], [0, 1, 2]).metrics['rsum'] == 600"


@pytest.mark.parametrize(
    "program",
    [
        "import retrieval_eval, allpairs.command, sys; assert 'torch' not in sys.modules"
        "; import retrieval_eval.evaluate; from retrieval_eval import evaluate" + SIX_HUNDRED,
        "from retrieval_eval import evaluate; import importlib; m = importlib.import_module('retrieval_eval.evaluate')"
        "; assert m.app; from retrieval_eval import evaluate" + SIX_HUNDRED,
    ],
)
def test_the_function_stays_in_place(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_cannot_be_replaced_by_accident():
    import retrieval_eval

    with pytest.raises(AttributeError, match="cannot be replaced"):
        retrieval_eval.evaluate = print
