"""An independent check of the counted recalls: does FAISS find a positive in the top k of the same queries?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retrieval_eval.folds import MeasuredFold
from retrieval_eval.indexes.probe import Backend
from retrieval_eval.inputs import Matrix, blocks, pair_to_rank
from retrieval_eval.report import Report
from retrieval_eval.shortlist import shortlist


@dataclass(frozen=True, eq=False)
class CrossCheck:
    """How the shortlists compare with the counted ranks, per recall (``i2t/r1`` …)."""

    agreement: dict[str, float]
    """Percent of the queries whose hit or miss is one that some order of the exactly tied items gives."""
    rounding: dict[str, int]
    """Disagreements within the bound on float32 rounding: the two products add up in different orders."""
    differences: dict[str, list[int]]
    """Queries whose disagreement nothing explains. Any is a bug, or an index that is not exact."""
    backend: Backend

    def __str__(self) -> str:
        worst = min(self.agreement, key=lambda name: self.agreement[name])
        if self.agreement[worst] == 100:
            return f"{self.backend} agrees with every counted hit and miss"
        unexplained = sum(len(queries) for queries in self.differences.values())
        return (
            f"{self.backend} agrees with the counted hits and misses of {self.agreement[worst]:.2f} % of the queries"
            f" or more (least at {worst}); {sum(self.rounding.values())} differ by rounding, {unexplained} unexplained"
        )


def cross_check(report: Report, queries: Matrix, gallery: Matrix) -> CrossCheck:
    """Search `gallery` [M, D] with `queries` [N, D], the ones of `report`, and compare every recall query by query."""
    Q, G = pair_to_rank(queries, gallery, cosine=report.cosine)
    agreement: dict[str, float] = {}
    rounding: dict[str, int] = {}
    differences: dict[str, list[int]] = {}
    for direction, (asking, answering) in zip(report.directions, ((Q, G), (G, Q)), strict=False):
        found = shortlist(asking, answering, max(report.ks))
        positives, ranks = report.positives[direction], report.ranks[direction]
        is_positive = positives.contain(found.indices)  # [N, K]
        bound = rounding_bound(asking, answering)
        for k in report.ks:
            hit = is_positive[:, :k].any(1)
            agrees = (hit & (ranks.optimistic <= k)) | (~hit & (ranks.pessimistic > k))
            last = found.scores[:, min(k, found.scores.shape[1]) - 1].astype(np.float64)
            close = np.abs(ranks.score - last) <= bound
            name = f"{direction}/r{k}"
            agreement[name] = 100.0 * float(agrees.mean())
            rounding[name] = int((~agrees & close).sum())
            differences[name] = np.flatnonzero(~agrees & ~close).tolist()
    return CrossCheck(agreement, rounding, differences, found.backend)


def rounding_bound(asking: torch.Tensor, answering: torch.Tensor) -> np.ndarray:
    """Return how far apart two items' float32 scores may lie and yet change places in another product, [N] float64.

    A float32 dot product in any order is within D·eps·|q||g| of the true one (Higham, Accuracy and Stability, 3.1); two
    items may change places between two such products if their scores are within twice that.
    """
    largest = max(float(norms.max()) for norms in _norms(answering))
    norms = torch.cat(list(_norms(asking))).cpu().numpy()
    return 2 * asking.shape[1] * torch.finfo(torch.float32).eps * norms * largest


def _norms(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    for _, block in blocks(matrix):
        yield torch.linalg.vector_norm(block, dim=1, dtype=torch.float64)


def verify(folds: Sequence[MeasuredFold]) -> CrossCheck:
    """Let FAISS search each part's galleries, and add up: agreement in percent of all queries.

    `differences` counts the queries through the folds, one after the other.
    """
    agreement: dict[str, float] = {}
    rounding: dict[str, int] = {}
    differences: dict[str, list[int]] = {}
    before: dict[str, int] = {}
    for fold in folds:
        for report, queries, gallery in fold.searches():
            found = cross_check(report, queries, gallery)
            for name, share in found.agreement.items():
                queries_here, seen = report.queries(name.split("/")[0]), before.get(name, 0)
                agreeing = agreement.get(name, 0.0) * seen + share * queries_here
                # Complete agreement stays exactly 100: sums of products with 100 are exact at these sizes.
                agreement[name] = agreeing / (seen + queries_here)
                rounding[name] = rounding.get(name, 0) + found.rounding[name]
                differences.setdefault(name, []).extend(seen + row for row in found.differences[name])
                before[name] = seen + queries_here
    return CrossCheck(agreement, rounding, differences, found.backend)
