"""The cross-check of everything that was measured under a protocol, as one."""

from collections.abc import Sequence

from retrieval_eval.cross_check import CrossCheck, cross_check
from retrieval_eval.parts import Part


def verify(parts: Sequence[Part]) -> CrossCheck:
    """Let FAISS search each part's galleries, and add up: agreement in percent of all queries.

    `differences` counts the queries through the parts, one after the other.
    """
    agreement: dict[str, float] = {}
    rounding: dict[str, int] = {}
    differences: dict[str, list[int]] = {}
    before: dict[str, int] = {}
    for part in parts:
        for report, queries, gallery in part.searches():
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
