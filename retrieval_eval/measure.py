"""Embeddings under a protocol: checked, cut into the folds that are measured alone, measured, and described."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval.evaluate import evaluate
from retrieval_eval.folds import Gallery, MeasuredFold, average, join
from retrieval_eval.manifest import manifest_of
from retrieval_eval.norms import Norms
from retrieval_eval.protocols import Protocol
from retrieval_eval.report import Report
from retrieval_eval.subset import Subset
from retrieval_eval.uncertainty import clusters_of


@dataclass(frozen=True, eq=False)
class CountingOptions:
    """Where the counting is done, which never changes what comes out, or another engine."""

    device: str | None = None
    shards: int | None = None
    state: Path | None = None
    progress: Callable[[int, int], None] | None = None
    engine: str = "exact"

    def within(self, name: str) -> "CountingOptions":
        """Return the same with a folder of its own for the state."""
        return replace(self, state=self.state / name if self.state is not None else None)

    def evaluate(self, asking: Gallery, answering: Gallery, **given: Any) -> Report:
        """Rank `answering` for `asking` by their ids."""
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
            engine=self.engine,
            **given,
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found under a protocol."""

    report: Report
    """The one fold's report, or the average over the folds."""
    folds: tuple[MeasuredFold, ...]
    embeddings: EmbeddingSet
    """What was measured: the given embeddings without missing captions."""
    manifest: dict[str, Any]


def measure(
    embeddings: EmbeddingSet,
    protocol: Protocol,
    subset: Subset | None = None,
    options: CountingOptions | None = None,
    members: Sequence[str] = (),
    *,
    cosine: bool = False,
) -> Measured:
    """Measure `embeddings` as `protocol` says, all queries or a subset of them, against the protocol's galleries.

    `members` names the runs of an ensemble, for the manifest. `cosine` normalises the embeddings first.

    Raises UserError for a gallery that does not fit.
    """
    options = options or CountingOptions()
    fitting, kept = protocol.fit(embeddings)
    images = Gallery(protocol.query_name, fitting.images, fitting.image_ids, fitting.image_ids, fitting.image_keys)
    captions = Gallery("t", fitting.captions, fitting.caption_ids, kept, fitting.texts)
    folds = []
    size = len(images) // protocol.folds
    for number in range(protocol.folds):
        where = options.within(f"block{number + 1}") if protocol.folds > 1 else options
        block = np.arange(number * size, (number + 1) * size)
        if protocol.folds > 1:
            own = np.flatnonzero(np.isin(captions.ids, images.ids[block]))
            gallery = images.take(block), captions.take(own)
        else:
            gallery = images, captions
        if subset is None:
            folds.append(_whole_fold(*gallery, where, cosine=cosine))
        else:
            folds.append(_subset_fold(*gallery, where, numbers=subset.captions, block=number + 1, cosine=cosine))
    report = average([fold.report for fold in folds])
    manifest = manifest_of(
        protocol.name,
        [fold.report for fold in folds],
        split=fitting.split,
        data_hash=fitting.data_hash,
        norms=(Norms.of(fitting.images), Norms.of(fitting.captions)),
        dropped=len(embeddings.captions) - len(kept) if protocol.drop_empty else None,
        members=members,
        subset=subset.manifest if subset is not None else None,
    )
    return Measured(report, tuple(folds), fitting, manifest)


def _whole_fold(images: Gallery, captions: Gallery, options: CountingOptions, *, cosine: bool) -> MeasuredFold:
    report = options.evaluate(images, captions, cosine=cosine)
    forward, backward = report.directions
    return MeasuredFold(
        report,
        {forward: images, backward: captions},
        {forward: captions, backward: images},
        clusters_of(report),
    )


def _subset_fold(
    images: Gallery, captions: Gallery, options: CountingOptions, *, numbers: np.ndarray, block: int, cosine: bool
) -> MeasuredFold:
    """Ask only the captions with these numbers, and their images."""
    caption_rows = np.flatnonzero(np.isin(captions.numbers, numbers))
    image_rows = np.flatnonzero(np.isin(images.ids, captions.ids[caption_rows]))
    if not len(caption_rows):
        raise UserError(f"the subset names no query of block {block}; accepted: at least one of each block")
    some_images, some_captions = images.take(image_rows), captions.take(caption_rows)
    given = {"both_directions": False, "cosine": cosine}
    forward = options.within("forward").evaluate(some_images, captions, **given)
    backward = options.within("backward").evaluate(some_captions, images, **given)
    (there,), (back,) = forward.directions, backward.directions
    by_id = np.argsort(some_images.ids)
    owner = by_id[np.searchsorted(some_images.ids, some_captions.ids, sorter=by_id)]
    return MeasuredFold(
        join(forward, backward),
        {there: some_images, back: some_captions},
        {there: captions, back: images},
        {there: np.arange(len(some_images)), back: owner},
        {there: image_rows, back: caption_rows},
    )


def default_device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
