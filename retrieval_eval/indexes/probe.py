"""What searches here: FAISS on GPUs, FAISS on the CPU, or torch where FAISS is missing."""

import logging
import subprocess
import sys
from functools import cache
from types import ModuleType
from typing import Literal

from allpairs.errors import UserError

logger = logging.getLogger(__name__)

Backend = Literal["faiss-gpu", "faiss-cpu", "torch"]

PROBE_SECONDS = 120
# What `retrieval_eval.indexes.build` does, in small, on every card.
PROBE = """
import faiss, numpy as np
options = faiss.GpuMultipleClonerOptions()
options.shard = True
index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(64), options)
parts = [index.at(i) for i in range(index.count())] if faiss.get_num_gpus() > 1 else [index]
x = np.eye(64, dtype=np.float32)
for part, rows in zip(parts, np.array_split(x, len(parts))):
    part.add(np.ascontiguousarray(rows))
if len(parts) > 1:
    index.syncWithSubIndexes()
assert (index.search(x, 1)[1][:, 0] == np.arange(64)).all()
"""


def require_faiss(what: str) -> ModuleType:
    """Return FAISS; UserError that names the extras where it is missing. `what` needs it (``--engine faiss``)."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"{what} needs FAISS ({error}); install the extra faiss-cpu or faiss-gpu") from None
    return faiss


@cache
def backend() -> Backend:
    """Return what searches here, probed once per process; one logged line says what falls back.

    An unsupported card makes the first GPU search abort the whole process, so a child process tries all of them.
    """
    try:
        import faiss
    except ImportError as error:
        logger.warning("FAISS is not here (%s; extra faiss-cpu or faiss-gpu): torch.topk makes the shortlists", error)
        return "torch"
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return "faiss-cpu"
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=PROBE_SECONDS, check=False)
        failure = "" if probe.returncode == 0 else f"exit code {probe.returncode}"
    except subprocess.TimeoutExpired:
        failure = f"no answer in {PROBE_SECONDS} s"
    if failure:
        cards = faiss.get_num_gpus()
        which = "this GPU" if cards == 1 else f"these {cards} GPUs together (CUDA_VISIBLE_DEVICES chooses among them)"
        logger.warning("FAISS cannot search on %s (%s): searching on the CPU", which, failure)
        return "faiss-cpu"
    return "faiss-gpu"
