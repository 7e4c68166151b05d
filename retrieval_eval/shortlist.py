"""Top-K shortlists by FAISS, on a GPU where its build and the card allow it, and by torch where FAISS is missing."""

import logging
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from retrieval_eval.inputs import Embeddings, pair_of_matrices
from retrieval_eval.precision import exact_float32

logger = logging.getLogger(__name__)

Backend = Literal["faiss-gpu", "faiss-cpu", "torch"]

CHUNK = 1024  # queries per product when torch makes the shortlist: 4 MB of scores per 1,000 gallery items
PROBE = """
import faiss, numpy as np
assert faiss.get_num_gpus() > 0
index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), 8)
x = np.eye(8, dtype=np.float32)
index.add(x)
assert (index.search(x, 1)[1][:, 0] == np.arange(8)).all()
"""


@dataclass(frozen=True, eq=False)
class Shortlist:
    """The best K gallery items of each query by dot product, best first; the order within ties is the backend's own."""

    scores: np.ndarray  # [N, K] float32
    indices: np.ndarray  # [N, K] int64
    backend: Backend


@cache
def backend() -> Backend:
    """Return what makes the shortlists here, probed once per process; one logged line says what falls back.

    An unsupported card makes the first GPU search abort the whole process, so a child process tries it.
    """
    try:
        import faiss
    except ImportError as error:
        logger.warning("FAISS is not here (%s; extra faiss-cpu or faiss-gpu): torch.topk makes the shortlists", error)
        return "torch"
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return "faiss-cpu"
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=120, check=False)
        failure = "" if probe.returncode == 0 else f"exit code {probe.returncode}"
    except subprocess.TimeoutExpired:
        failure = "no answer in 120 s"
    if failure:
        logger.warning("FAISS cannot search on this GPU (%s): searching on the CPU", failure)
        return "faiss-cpu"
    return "faiss-gpu"


def shortlist(queries: Embeddings, gallery: Embeddings, k: int) -> Shortlist:
    """Return the best k (at most all) of gallery [M, D] for each query [N, D]; UserError for unfit input."""
    Q, G = pair_of_matrices(queries, gallery)
    k = min(k, len(G))
    kind = backend()
    if kind == "torch":
        scores, indices = _by_torch(Q, G, k)
    else:
        scores, indices = _by_faiss(Q.cpu().numpy(), G.cpu().numpy(), k, kind)
    return Shortlist(scores, indices, kind)


def _by_faiss(queries: np.ndarray, gallery: np.ndarray, k: int, kind: Backend) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    index: Any = faiss.IndexFlatIP(gallery.shape[1])
    if kind == "faiss-gpu":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(np.ascontiguousarray(gallery))
    return index.search(np.ascontiguousarray(queries), k)


def _by_torch(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    with exact_float32(queries.device):
        best = [torch.topk(chunk @ gallery.T, k, dim=1) for chunk in queries.split(CHUNK)]
    scores, indices = (torch.cat(parts).cpu().numpy() for parts in zip(*best, strict=True))
    return scores, indices
