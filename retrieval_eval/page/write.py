"""`write_report`: everything about one evaluation in one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrieval_eval.embeddings import EmbeddingSet
from retrieval_eval.evaluation import Report


def write_report(
    path: str | Path,
    embeddings: EmbeddingSet,
    report: Report,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    title: str = "Retrieval report",
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of `embeddings` (directions image to text and text to image) to `path` and return it."""
    raise NotImplementedError
