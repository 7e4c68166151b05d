"""FAISS indexes that search a part of the gallery, or short codes of it, with parameters that suit its size.

``ivf``: k-means clusters (inverted lists), the nearest few of which are searched. ``hnsw``: a graph of neighbours.
``pq``: product-quantised codes, one per four dimensions, all searched. ``ivfpq``: such codes inside clusters.
"""

from dataclasses import dataclass
from math import isqrt, log2
from typing import Any

import numpy as np
import torch

from allpairs.errors import UserError, nearest
from retrieval_eval.shortlist import blocks

KINDS = ("ivf", "hnsw", "pq", "ivfpq")

SEED = 0
NEEDED = 39  # training points per centroid, below which FAISS itself warns
TRAINED_ON = 64  # training points per centroid, where there are that many
SUBVECTOR = 4  # dimensions per code
BITS = 8  # of a code in a gallery that is large enough
FEWEST_BITS = 4
PROBES = (8, 64)  # lists that are searched: a sixteenth of all, within these bounds
NEIGHBOURS, BUILD_WIDTH, SEARCH_WIDTH = 32, 200, 128  # M, efConstruction and efSearch of HNSW


@dataclass(frozen=True)
class IndexParameters:
    """What is built for a gallery, and what its size does not allow."""

    kind: str
    lists: int = 0
    probes: int = 0
    bits: int = 0
    note: str = ""
    """One line about what is used instead where the gallery is small; empty otherwise."""

    def __str__(self) -> str:
        parts = [f"{self.probes} of {self.lists} lists"] if self.lists else []
        parts += [f"{self.bits}-bit codes of {SUBVECTOR} dimensions"] if self.bits else []
        parts += [f"{NEIGHBOURS} neighbours, {SEARCH_WIDTH} candidates"] if self.kind == "hnsw" else []
        return ", ".join(parts)


def check_kind(kind: str) -> str:
    """Return `kind` if it is one of `KINDS`; UserError with the nearest otherwise."""
    if kind not in KINDS:
        raise UserError(f"unknown approximate index {kind!r}{nearest(kind, KINDS)} (accepted: {', '.join(KINDS)})")
    return kind


def plan(kind: str, items: int, name: str = "the gallery") -> IndexParameters:
    """Choose parameters for a gallery of `items`; UserError if k-means has too few points for this kind."""
    check_kind(kind)
    lists = probes = bits = 0
    notes = []
    if kind in ("ivf", "ivfpq"):
        lists = min(4 * isqrt(items), items // NEEDED)
        if lists < 2:
            _refuse(kind, items, name, 2 * NEEDED)
        probes = min(lists, max(PROBES[0], min(PROBES[1], lists // 16)))
        if probes == lists:
            notes.append(f"all {lists} lists are searched")
    if kind in ("pq", "ivfpq"):
        bits = min(BITS, int(log2(max(1, items // NEEDED))))
        if bits < FEWEST_BITS:
            _refuse(kind, items, name, NEEDED * 2**FEWEST_BITS)
        if bits < BITS:
            notes.append(f"{bits}-bit codes are used instead of {BITS}-bit ones, which take {NEEDED * 2**BITS:,} items")
    note = f"{name} is small for {kind} ({items:,} items): {', and '.join(notes)}" if notes else ""
    return IndexParameters(kind, lists, probes, bits, note)


def build(gallery: torch.Tensor, chosen: IndexParameters) -> Any:
    """Return a FAISS index of `gallery` [M, D] for inner products, trained on a seeded sample and filled in blocks.

    The same index each time, but for ``hnsw`` where several threads insert: then the graph depends on their timing.
    UserError where FAISS is missing.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"approximate search needs FAISS ({error}); install the extra faiss-cpu or faiss-gpu") from None
    width = gallery.shape[1]
    if chosen.kind == "hnsw":
        index: Any = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_WIDTH, SEARCH_WIDTH
    else:
        # np: codes in any order. Sorting them for polysemous filters, which are not used, takes longer than all else.
        codes = f"PQ{width_of_codes(width) // SUBVECTOR}x{chosen.bits}np"
        parts = {"ivf": (f"IVF{chosen.lists}", "Flat"), "pq": (codes,), "ivfpq": (f"IVF{chosen.lists}", codes)}
        if chosen.bits:
            width = width_of_codes(width)
        index = faiss.index_factory(width, ",".join(parts[chosen.kind]), faiss.METRIC_INNER_PRODUCT)
        if chosen.lists:
            index.cp.seed, index.nprobe = SEED, chosen.probes
        if chosen.bits:
            index.pq.cp.seed = SEED
        index.train(_padded(_sample(gallery, TRAINED_ON * max(chosen.lists, 2**chosen.bits)), width))
    for _, block in blocks(gallery):
        index.add(_padded(block, width))
    return index


def search(index: Any, queries: torch.Tensor, k: int) -> np.ndarray:
    """Return the indices [N, k] that the index finds for `queries` [N, D], best first, -1 where it found no more."""
    found = np.empty((len(queries), k), np.int64)
    for start, block in blocks(queries):
        found[start : start + len(block)] = index.search(_padded(block, index.d), k)[1]
    return found


def width_of_codes(dimensions: int) -> int:
    """Return the dimensions that codes cover: rounded up to whole ones, as zeros add nothing to an inner product."""
    return -(-dimensions // SUBVECTOR) * SUBVECTOR


def _padded(block: np.ndarray, width: int) -> np.ndarray:
    return block if block.shape[1] == width else np.pad(block, ((0, 0), (0, width - block.shape[1])))


def _sample(gallery: torch.Tensor, size: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.choice(len(gallery), min(size, len(gallery)), replace=False))
    return gallery[torch.from_numpy(rows).to(gallery.device)].to("cpu", torch.float32).contiguous().numpy()


def _refuse(kind: str, items: int, name: str, needed: int) -> None:
    raise UserError(
        f"{name} has {items:,} items, too few for {kind}: its k-means needs {needed:,}; accepted: hnsw, or exact search"
    )
