"""Room to work in and what to work with: disk, shared memory, cores and memory, GPUs and NCCL."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from distributed.doctor.finding import Finding, ProbeError, ask

GIB = 2**30


def check_machine() -> Finding:
    """Cores and memory, as Ray will count them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Finding("machine", "ok", f"{os.cpu_count()} cores, {memory:.0f} GiB memory")


def check_disk() -> list[Finding]:
    """Free space where runs are written and where Ray keeps its sessions (it refuses to spill on a 95 % full disk)."""
    rows = []
    for role, folder in (("here", Path.cwd()), ("for Ray sessions", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(folder)
        found = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.0f} {role} ({folder})"
        if usage.free < GIB:
            rows.append(Finding("disk", "problem", found, "free some space: a run needs at least 1 GiB"))
        elif usage.free < 5 * GIB or usage.free < 0.05 * usage.total:
            rows.append(Finding("disk", "warning", found, "free some space, or set run.dir to a larger disk"))
        else:
            rows.append(Finding("disk", "ok", found))
    return rows


def check_shared_memory() -> Finding:
    """Shared memory for Ray's object store and NCCL."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "no /dev/shm on this system: Ray uses files")
    free = shutil.disk_usage(folder).free / GIB
    if free < 2:
        remedy = "docker run --shm-size=8g, or an emptyDir with medium: Memory on Kubernetes"
        return Finding("shared memory", "warning", f"{free:.2f} GiB free in {folder}", remedy)
    return Finding("shared memory", "ok", f"{free:.1f} GiB free in {folder}")


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
