"""What a number was measured on and how, for the record beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval_eval.folds import average
from retrieval_eval.metrics import definitions
from retrieval_eval.norms import Norms, similarity_note, similarity_record
from retrieval_eval.report import Report
from retrieval_eval.searched.agreement import agreement

DEFINITION = (
    "R@k: percent of the queries with at least one positive among the k best gallery items;"
    " rank: 1 + the gallery items that score above the query's best positive;"
    " RSUM: the sum of R@1, R@5 and R@10 of both directions"
)
PRECISION = "float32 dot products, no TF32; ranks counted over the whole gallery"
SEARCHED = "float32 dot products; the whole gallery searched by FAISS for the best of each query"
TIES = "expected value over all orders of tied items"


def manifest_of(
    protocol: str,
    reports: Sequence[Report],
    *,
    split: str,
    data_hash: str,
    norms: tuple[Norms, Norms],
    dropped: int | None = None,
    members: Sequence[str] = (),
    subset: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe the measurement of one report, or of several folds, each of which has a gallery of the same size.

    `norms` are those of all queries and of the whole gallery, as given, over all folds.
    """
    first = reports[0]
    searched = agreement(average(reports))
    counts = first.positives[first.directions[0]].counts
    manifest: dict[str, Any] = {
        "protocol": protocol,
        "split": split,
        "data_hash": data_hash,
        "queries": {name: sum(report.queries(name) for report in reports) for name in first.directions},
        "gallery": {name: first.gallery(name) for name in first.directions},
        "positives_per_query": {
            name: {
                "least": min(int(report.positives[name].counts.min()) for report in reports),
                "most": max(int(report.positives[name].counts.max()) for report in reports),
            }
            for name in first.directions
        },
        "captions_per_item": float(counts.mean()),
        "definition": DEFINITION,
        **similarity_record(*norms, cosine=first.cosine, both=len(first.directions) > 1),
        "engine": {"name": "exact"} if searched is None else searched.record(),
        "precision": PRECISION if searched is None else SEARCHED,
        "ties": TIES,
        "metrics": definitions(first.metrics),
    }
    if len(reports) > 1:
        manifest["folds"] = f"mean over {len(reports)} consecutive blocks"
    if dropped is not None:
        manifest["missing_captions"] = dropped
    if len(members) > 1:
        manifest["ensemble"] = list(members)
    if subset is not None:
        manifest["subset"] = dict(subset)
    return manifest


def facts_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what a page says of the protocol, beyond the embeddings' own facts."""
    facts = {
        "Protocol": str(manifest["protocol"]),
        "Split": str(manifest["split"]),
        "Data hash": str(manifest["data_hash"]) or "not recorded",
        "Gallery": ", ".join(f"{name} {size:,}" for name, size in manifest["gallery"].items()),
        "Captions per item": f"{manifest['captions_per_item']:g}",
        "Similarity": similarity_note(manifest) or "the inner product of embeddings of one length",
    }
    if "folds" in manifest:
        facts["Folds"] = str(manifest["folds"])
    if "missing_captions" in manifest:
        facts["Missing captions"] = f"{manifest['missing_captions']:,} left out"
    if "ensemble" in manifest:
        facts["Ensemble"] = "mean of the scores of " + ", ".join(manifest["ensemble"])
    if "subset" in manifest:
        facts["Queries"] = f"a subset ({manifest['subset']['file']}) against the full gallery"
    return facts
