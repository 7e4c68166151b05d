"""GPUs, their driver and NCCL: what data-parallel training runs on."""

import json
import shutil
import subprocess

from distributed.doctor.finding import Finding
from distributed.doctor.probe import ProbeError, ask

_ASK_TORCH = """
import json, torch
there = torch.cuda.is_available()
names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if there else []
nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
print(json.dumps({
    "build": torch.version.cuda or torch.version.hip,
    "gpus": [f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in names],
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if nccl and there else None,
    "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
}))
"""


def check_gpu() -> Finding:
    """Torch sees the GPUs the driver sees, with NCCL to join them; a machine without any trains over gloo."""
    driver = _driver()
    try:
        torch = json.loads(ask(_ASK_TORCH))
    except ProbeError as error:
        return Finding("gpu", "problem", f"torch does not start: {error}", "reinstall torch with the pinned version")
    if not torch["gpus"]:
        return _judge_without(driver, torch["build"], torch["gloo"])
    found = f"{len(torch['gpus'])} × {torch['gpus'][0]}; driver {driver or 'unknown'}; torch for CUDA {torch['build']}"
    if torch["nccl"] is None:
        return Finding("gpu", "problem", f"{found}; no NCCL", "install a torch built with NCCL")
    return Finding("gpu", "ok", f"{found}; NCCL {torch['nccl']}")


def _judge_without(driver: str | None, build: str | None, gloo: bool) -> Finding:
    """Torch sees no GPU: right on a machine without one, worth a word where the driver sees one."""
    if driver is None and gloo:
        return Finding("gpu", "ok", "none: workers run on CPU and talk over gloo")
    if driver is None:
        return Finding("gpu", "problem", "no GPU, and this torch has no gloo", "install a torch with gloo")
    if build is None:
        remedy = "install the CUDA build of torch to use it"
        return Finding("gpu", "warning", f"the driver ({driver}) sees a GPU, but torch is a CPU build", remedy)
    remedy = "update the driver, or look at CUDA_VISIBLE_DEVICES"
    return Finding("gpu", "problem", f"driver {driver}, torch for CUDA {build}, yet no GPU is usable", remedy)


def _driver() -> str | None:
    """Version of the NVIDIA driver where it sees a GPU, else None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None
