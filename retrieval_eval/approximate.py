"""Approximate search, for galleries too large to search exactly, and what it costs.

How far it is from exact: recall against recall, and the share of the exact top k that it finds (`measure_gap`).
"""

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from retrieval_eval.cross_check import rounding_bound
from retrieval_eval.indexes.build import build, search
from retrieval_eval.indexes.parameters import check_kind, plan
from retrieval_eval.indexes.probe import Backend
from retrieval_eval.inputs import BLOCK, Matrix, pair_to_rank
from retrieval_eval.report import Report
from retrieval_eval.shortlist import Shortlist, shortlist

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class RecallGap:
    """One recall, exact and approximate, in percent."""

    exact: float
    approximate: float
    found: float
    """Recall of the index itself: percent of the exact top k that its top k holds; any of equal scores will do."""

    @property
    def difference(self) -> float:
        """Approximate minus exact, in points."""
        return self.approximate - self.exact


@dataclass(frozen=True)
class BuiltIndex:
    """One direction's index, in words, and its seconds; `exact_seconds` is what exact search took for the same."""

    parameters: str
    backend: Backend
    build_seconds: float
    search_seconds: float
    exact_seconds: float


@dataclass(frozen=True, eq=False)
class Gap:
    """What `measure_gap` found."""

    kind: str
    recalls: dict[str, RecallGap]
    """Per recall: ``i2t/r1`` …"""
    indexes: dict[str, BuiltIndex]
    """Per direction."""
    notes: list[str] = field(default_factory=list)
    """What was used instead where a gallery was small."""

    def __str__(self) -> str:
        worst = max(self.recalls, key=lambda name: abs(self.recalls[name].difference))
        least = min(self.recalls, key=lambda name: self.recalls[name].found)
        at = self.recalls[worst]
        built, searched, exact = (
            sum(getattr(index, f"{part}_seconds") for index in self.indexes.values())
            for part in ("build", "search", "exact")
        )
        where = " and ".join(sorted({index.backend for index in self.indexes.values()}))
        line = (
            f"approximate ({self.kind}, {where}): gap to exact {at.difference:+.2f} points at most (at {worst}:"
            f" {at.exact:.2f} exact, {at.approximate:.2f} approximate); finds {self.recalls[least].found:.2f} % of the"
            f" exact answers or more (least at {least}); built in {built:.2f} s, searched in {searched:.2f} s"
            f" (exact: {exact:.2f} s)"
        )
        return "; ".join([line, *self.notes])


def measure_gap(queries: Matrix, gallery: Matrix, report: Report, kind: str) -> Gap:
    """Search `gallery` [M, D] with `queries` [N, D], the ones of `report`, by an index of `kind`, and compare.

    `kind` is one of ``ivf``, ``hnsw``, ``pq``, ``ivfpq``. Each direction of the report has an index of its own. The
    exact recalls are the report's, with its expected values over ties; an index breaks ties in its own order.

    Raises UserError for an unknown kind, a gallery too small for it, and where FAISS is missing.
    """
    check_kind(kind)
    Q, G = pair_to_rank(queries, gallery, cosine=report.cosine)
    forward, *backward = report.directions
    sides = {forward: (Q, G), **dict.fromkeys(backward, (G, Q))}
    parameters = {
        direction: plan(kind, len(answering), f"the gallery of {direction}")
        for direction, (_, answering) in sides.items()
    }
    recalls: dict[str, RecallGap] = {}
    indexes: dict[str, BuiltIndex] = {}
    for direction, (asking, answering) in sides.items():
        depth = min(max(report.ks), len(answering))
        times = [perf_counter()]
        index, where = build(answering, parameters[direction], depth)
        times.append(perf_counter())
        _, found = search(index, asking, depth)
        times.append(perf_counter())
        exact = shortlist(asking, answering, depth)
        times.append(perf_counter())
        indexes[direction] = BuiltIndex(str(parameters[direction]), where, *np.diff(times).tolist())
        # No item is -1: such a place holds no positive.
        is_positive = report.positives[direction].contain(np.maximum(found, 0)) & (found >= 0)
        for k in report.ks:
            name = f"{direction}/r{k}"
            share = _share_found(asking, answering, found[:, :k], exact)
            approximate = 100.0 * int(is_positive[:, :k].any(1).sum()) / len(found)
            recalls[name] = RecallGap(report.metrics[name], approximate, share)
    return Gap(kind, recalls, indexes, [chosen.note for chosen in parameters.values() if chosen.note])


def gap_table(gap: Gap) -> "Table":
    """Return a rich table of `gap`: a row per recall, and below what was built."""
    from rich import box
    from rich.table import Table

    shown = Table(
        title=f"approximate search: {gap.kind}", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    shown.add_column("")
    for heading in ("exact", "approximate", "gap", "exact top k found"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, at in gap.recalls.items():
        shown.add_row(name, f"{at.exact:.2f}", f"{at.approximate:.2f}", f"{at.difference:+.2f}", f"{at.found:.2f} %")
    lines = [
        f"{direction}: {index.parameters}, {index.backend}; built in {index.build_seconds:.2f} s, searched in"
        f" {index.search_seconds:.2f} s (exact: {index.exact_seconds:.2f} s)"
        for direction, index in gap.indexes.items()
    ]
    shown.caption = "\n".join([*lines, *gap.notes])
    return shown


def _share_found(asking: torch.Tensor, answering: torch.Tensor, found: np.ndarray, exact: Shortlist) -> float:
    """Percent of the exact top k [N, K] that is in `found` [N, k], an equally good item (within rounding) being one."""
    k = found.shape[1]
    last = exact.scores[:, k - 1].astype(np.float64) - rounding_bound(asking, answering)
    good = (found[:, :, None] == exact.indices[:, None, :k]).any(2)
    step = max(1, BLOCK // (k * asking.shape[1]))
    for start in range(0, len(found), step):
        here = slice(start, start + step)
        items = torch.from_numpy(np.maximum(found[here], 0)).to(answering.device)
        scores = torch.einsum("nd,nkd->nk", asking[here].double(), answering[items].double()).cpu().numpy()
        good[here] |= (scores >= last[here, None]) & (found[here] >= 0)
    return 100.0 * float(good.mean())
