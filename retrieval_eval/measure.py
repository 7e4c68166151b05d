"""Embeddings under a protocol: checked, cut into what is measured at once, measured, and described by a manifest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allpairs.errors import UserError
from retrieval_eval.embeddings import EmbeddingSet
from retrieval_eval.evaluation import Report, evaluate
from retrieval_eval.manifest import manifest_of
from retrieval_eval.parts import Part, Side, average, join
from retrieval_eval.protocols import Protocol
from retrieval_eval.subset import Subset
from retrieval_eval.uncertainty import clusters_of


@dataclass(frozen=True, eq=False)
class How:
    """Where the counting is done: never what comes out."""

    device: str | None = None
    shards: int | None = None
    state: Path | None = None
    progress: Callable[[int, int], None] | None = None

    def within(self, name: str) -> "How":
        """Return the same with a folder of its own for the state."""
        return How(self.device, self.shards, self.state / name if self.state is not None else None, self.progress)

    def __call__(self, asking: Side, answering: Side, **options: Any) -> Report:
        """Evaluate one side against the other by their ids."""
        return evaluate(
            asking.embeddings,
            answering.embeddings,
            asking.ids,
            answering.ids,
            query_name=asking.letter,
            gallery_name=answering.letter,
            device=self.device,
            shards=self.shards,
            state=self.state,
            progress=self.progress,
            **options,
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found under a protocol."""

    report: Report
    """The one part's report, or the average over the folds."""
    parts: tuple[Part, ...]
    embeddings: EmbeddingSet
    """What was measured: the given embeddings without missing captions."""
    manifest: dict[str, Any]


def measure(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    subset: Subset | None = None,
    how: How | None = None,
    members: Sequence[str] = (),
) -> Measured:
    """Measure `embeddings` as `protocol` says, all queries or a subset of them, against the protocol's galleries.

    `members` names the runs of an ensemble, for the manifest. Raises UserError for a gallery that does not fit.
    """
    how = how or How()
    fitting, kept = protocol.fit(embeddings)
    images = Side(protocol.query_name, fitting.images, fitting.image_ids, fitting.image_ids, fitting.image_keys)
    captions = Side("t", fitting.captions, fitting.caption_ids, kept, fitting.texts)
    parts = []
    size = len(images) // protocol.folds
    for fold in range(protocol.folds):
        where = how.within(f"block{fold + 1}") if protocol.folds > 1 else how
        block = np.arange(fold * size, (fold + 1) * size)
        if protocol.folds > 1:
            own = np.flatnonzero(np.isin(captions.ids, images.ids[block]))
            gallery = images.take(block), captions.take(own)
        else:
            gallery = images, captions
        if subset is None:
            parts.append(_whole_part(*gallery, where))
        else:
            parts.append(_some(*gallery, where, numbers=subset.captions, block=fold + 1))
    report = average([part.report for part in parts])
    manifest = manifest_of(
        protocol.name,
        [part.report for part in parts],
        split=fitting.split,
        data_hash=fitting.data_hash,
        dropped=len(embeddings.captions) - len(kept) if protocol.drop_empty else None,
        members=members,
        subset=subset.manifest if subset is not None else None,
    )
    return Measured(report, tuple(parts), fitting, manifest)


def _whole_part(images: Side, captions: Side, how: How) -> Part:
    report = how(images, captions)
    forward, backward = report.directions
    return Part(
        report,
        {forward: images, backward: captions},
        {forward: captions, backward: images},
        clusters_of(report),
    )


def _some(images: Side, captions: Side, how: How, *, numbers: np.ndarray, block: int) -> Part:
    """Ask only the captions with these numbers, and their images."""
    caption_rows = np.flatnonzero(np.isin(captions.numbers, numbers))
    image_rows = np.flatnonzero(np.isin(images.ids, captions.ids[caption_rows]))
    if not len(caption_rows):
        raise UserError(f"the subset names no query of block {block}; accepted: at least one of each block")
    some_images, some_captions = images.take(image_rows), captions.take(caption_rows)
    forward = how.within("forward")(some_images, captions, both_directions=False)
    backward = how.within("backward")(some_captions, images, both_directions=False)
    (there,), (back,) = forward.directions, backward.directions
    by_id = np.argsort(some_images.ids)
    owner = by_id[np.searchsorted(some_images.ids, some_captions.ids, sorter=by_id)]
    return Part(
        join(forward, backward),
        {there: some_images, back: some_captions},
        {there: captions, back: images},
        {there: np.arange(len(some_images)), back: owner},
        {there: image_rows, back: caption_rows},
    )
