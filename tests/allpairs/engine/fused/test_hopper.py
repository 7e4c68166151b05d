"""The kernels as they are launched on Hopper compile for it, on a machine without a GPU too."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
SHARED_OF_A_BLOCK = 227 * 1024


def test_the_kernels_compile_to_hoppers_own_instructions(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(Path(__file__).with_name("compile_for_hopper.py"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    assert set(output["versions"].values()) == {1}, "a ragged batch would be compiled for anew"
    for found in output["compiled"]:
        assert found["shared"] <= SHARED_OF_A_BLOCK, found
        assert found["spilled"] == 0, found
        assert not found["tf32"], found
        if not found["kernel"].startswith("merge"):
            assert found["copy_engine"], found
            assert found["wgmma"] == (found["dtype"] != "fp32"), found
