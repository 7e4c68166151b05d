"""Room to work in: disk, shared memory, cores and memory."""

import os
import shutil
import tempfile
from pathlib import Path

from distributed.doctor.finding import Finding

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
