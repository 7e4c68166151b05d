"""The compiler DeepSpeed calls: it builds a small C++ extension the first time a worker starts."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from distributed.doctor.finding import Finding


def check_toolchain() -> Finding:
    """A C++ compiler, ninja on the PATH and Python's headers, as torch's extension builder looks for them."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    missing = []
    if shutil.which(compiler) is None:
        missing.append((f"C++ compiler ({compiler})", "apt install g++"))
    # Torch asks the PATH, so ninja's wheel in a virtual environment counts only while that environment is active.
    if not _ninja_runs():
        missing.append(("ninja on the PATH", "activate the environment and pip install ninja"))
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append(("Python.h", "apt install python3-dev"))
    if missing:
        lacks = "lacks " + ", ".join(what for what, _ in missing)
        if find_spec("deepspeed") is None:
            return Finding("toolchain", "ok", f"{lacks} (DeepSpeed, which alone needs it, is not installed)")
        return Finding("toolchain", "warning", f"{lacks}: no DeepSpeed", "; ".join(remedy for _, remedy in missing))
    cache = os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")
    return Finding("toolchain", "ok", f"{shutil.which(compiler)}, ninja, Python headers; extensions cached in {cache}")


def _ninja_runs() -> bool:
    try:
        return subprocess.run(["ninja", "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
