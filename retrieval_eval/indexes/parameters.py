"""The kinds of FAISS index, with parameters that suit a gallery's size.

``flat``: all of the gallery is searched, by exact products. The others search a part of it, or short codes.
``ivf``: k-means clusters (inverted lists), the nearest few of which are searched. ``hnsw``: a graph of neighbours.
``pq``: product-quantised codes, one per four dimensions, all searched. ``ivfpq``: such codes inside clusters.
"""

from dataclasses import dataclass
from math import isqrt, log2

from allpairs.errors import UserError, nearest

APPROXIMATE = ("ivf", "hnsw", "pq", "ivfpq")
KINDS = ("flat", *APPROXIMATE)

SEED = 0
NEEDED = 39  # training points per centroid, below which FAISS itself warns
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
    """Return `kind` if it is one of `APPROXIMATE`; UserError with the nearest otherwise."""
    if kind not in APPROXIMATE:
        raise UserError(
            f"unknown approximate index {kind!r}{nearest(kind, APPROXIMATE)} (accepted: {', '.join(APPROXIMATE)})"
        )
    return kind


def plan(kind: str, items: int, name: str = "the gallery") -> IndexParameters:
    """Choose parameters for a gallery of `items`; UserError if k-means has too few points for this kind."""
    assert kind in KINDS
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


def width_of_codes(dimensions: int) -> int:
    """Return the dimensions that codes cover: rounded up to whole ones, as zeros add nothing to an inner product."""
    return -(-dimensions // SUBVECTOR) * SUBVECTOR


def _refuse(kind: str, items: int, name: str, needed: int) -> None:
    raise UserError(
        f"{name} has {items:,} items, too few for {kind}: its k-means needs {needed:,}; accepted: hnsw, or exact search"
    )
