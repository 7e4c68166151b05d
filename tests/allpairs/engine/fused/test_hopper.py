"""The kernels as they are launched on Hopper compile for it, on a machine without a GPU too."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.resources import SHARED

ROOT = Path(__file__).parents[4]


def test_the_kernels_compile_to_hoppers_own_instructions(tmp_path):
    """In a process of its own, since kernels that are interpreted cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "benchmarks.resources", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    assert set(output["versions"].values()) == {1}, "a ragged batch would be compiled for anew"
    for found in output["compiled"]:
        assert found["shared"] <= SHARED, found
        assert found["spilled"] == 0, found
        assert not found["tf32"], found
        if found["kernel"].startswith("merge"):
            continue
        assert found["copy_engine"], found
        assert found["wgmma"] == (found["dtype"] != "fp32"), found
        assert not found["serialized"], found
        # That of the copy engine's own barriers: no warp waits for another to find out what is masked.
        assert found["before_load"] <= 1, found
