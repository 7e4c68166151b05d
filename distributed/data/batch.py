"""What the readers hand to the training loop and to the evaluation, made of rows read by several threads.

Shapes: b images of this rank's batch · C their captions (training: k·b, k captions per image) · S image side in
pixels · R regions · F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from allpairs.errors import UserError
from distributed.data.dataset import BadSampleError, Dataset
from distributed.data.manifest import SPLIT_ORDER
from distributed.data.order import Position

if TYPE_CHECKING:
    import torch  # not at run time: building and checking data should start without the seconds it takes

Tokenize = Callable[[list[str]], Any]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images with their captions, joined by id; captions are image-major: all of image 0's, then all of image 1's, …

    Attributes:
        images: ``[b, 3, S, S]`` uint8, RGB; for precomputed regions ``[b, R, F]`` float32.
        image_ids: ``[b]`` int64, the sample's row in its dataset.
        captions: the ``C`` captions as text.
        caption_ids: ``[C]`` int64, for each caption the id of the image it describes.
        tokens: what the reader's `tokenize` made of `captions`; None without one.
        keys: the ``b`` sample keys, for messages and example tables.
        seen: samples read for this batch, bad ones included.
        bad: how many of them were dropped, by cause.
        text_ids: ``[C]`` int64, equal for captions that say the same; None where such are each other's negatives.
        margins: ``[b]`` float32, one per pair where training takes margins from somewhere; None elsewhere.
    """

    images: torch.Tensor
    image_ids: torch.Tensor
    captions: list[str]
    caption_ids: torch.Tensor
    tokens: Any
    keys: list[str]
    seen: int
    bad: dict[str, int]
    text_ids: torch.Tensor | None = None
    margins: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TrainBatch(Batch):
    """One rank's slice of one global batch.

    Attributes:
        position: where to resume after this batch; the epoch's last batch points to sample 0 of the next epoch.
        global_rows: samples of the whole global batch over all ranks, bad ones included.
    """

    position: Position
    global_rows: int


MIN_GOOD_ROWS = 2  # a contrastive step needs a negative


class Pick(NamedTuple):
    """What to read: a row, and the one of its captions that its place in the epoch stands for, if it does."""

    row: int
    caption: int | None = None


class Pair(NamedTuple):
    """An image's row and the number of the caption that it meets; None where it has no caption."""

    row: int
    caption: int | None


PairsOf = Callable[[slice], list[Pair]]
"""Gives the pairs at some places of a global batch: any rank may look at all of it."""


class MarginSource(Protocol):
    """Gives one rank the margins of its pairs."""

    def __call__(self, pairs: PairsOf, size: int, part: slice) -> np.ndarray | None:
        """Return the margins ``[part]`` of the places `part` of a global batch of `size`; 0 without a caption.

        Of an ensemble ``[part, nets]``; None leaves all pairs the objective's own.
        """


# load(pick) -> the array to stack and the captions to use; raises BadSampleError
Load = Callable[[Pick], tuple[np.ndarray, list[str]]]


def collate(
    dataset: Dataset,
    picks: Sequence[Pick],
    load: Load,
    *,
    tokenize: Tokenize | None,
    pool: Executor | None,
    margins: np.ndarray | None = None,
) -> Batch:
    """Load `picks` (in the threads of `pool`, if given) into a batch; those that are bad are missing from it.

    `margins`, one for each of `picks`, go with them.

    Raises:
        UserError: the arrays of the rows differ in shape.
    """
    import torch

    def attempt(pick: Pick) -> tuple[np.ndarray, list[str]] | BadSampleError:
        try:
            return load(pick)
        except BadSampleError as bad:
            return bad

    loaded = list(pool.map(attempt, picks) if pool else map(attempt, picks))
    good = [
        (pick.row, *sample)
        for pick, sample in zip(picks, loaded, strict=True)
        if not isinstance(sample, BadSampleError)
    ]
    usable = [not isinstance(sample, BadSampleError) for sample in loaded]
    arrays = [array for _, array, _ in good]
    for row, array, _ in good:
        if array.shape != arrays[0].shape:
            raise UserError(
                f"{dataset.where(row)}: an array of shape {list(array.shape)} among others of {list(arrays[0].shape)}"
            )
    captions = [caption for _, _, texts in good for caption in texts]
    return Batch(
        images=torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(0),
        image_ids=torch.tensor([row for row, _, _ in good], dtype=torch.int64),
        captions=captions,
        caption_ids=torch.tensor([row for row, _, texts in good for _ in texts], dtype=torch.int64),
        tokens=tokenize(captions) if tokenize and captions else None,
        keys=[dataset.key(row) for row, _, _ in good],
        seen=len(picks),
        bad=dict(Counter(sample.cause for sample in loaded if isinstance(sample, BadSampleError))),
        margins=None if margins is None else torch.from_numpy(margins[usable].astype(np.float32)),
    )


def refuse_too_few(dataset: Dataset, picks: Sequence[Pick], batch: Batch) -> None:
    """Raise UserError when fewer than two of a training batch's `picks` were good, naming where they lie."""
    if len(batch.keys) < MIN_GOOD_ROWS:
        named = "; ".join(dataset.where(pick.row) for pick in picks[:4]) + (" …" if len(picks) > 4 else "")
        raise UserError(
            f"a batch of {len(picks)} samples has {describe_bad(batch.bad)}: fewer than the {MIN_GOOD_ROWS} good ones "
            f"that a step needs: {named}; see `python -m distributed.data validate {dataset.folder}`"
        )


def refuse_too_bad(dataset: Dataset, seen: int, bad: Mapping[str, int], max_fraction: float) -> None:
    """Raise UserError when more than `max_fraction` of the `seen` samples were bad."""
    count = sum(bad.values())
    if count > max_fraction * seen:
        raise UserError(
            f"{dataset.folder}: {count} of {seen} samples cannot be used ({describe_bad(bad)}), more than the allowed "
            f"fraction of {max_fraction:g}; see `python -m distributed.data validate {dataset.folder}`"
        )


def dropped_metrics(split: str, dropped: Mapping[str, int]) -> dict[str, float]:
    """Return one metric for each cause that samples of `split` were dropped for: ``train/dropped/missing_text``."""
    return {f"{split}/{_DROPPED}/{cause.replace(' ', '_')}": count for cause, count in dropped.items() if count}


def dropped_so_far(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the latest of each count that `dropped_metrics` put into the rows of a run's `history`."""
    return {name: value for row in history for name, value in row.items() if f"/{_DROPPED}/" in name}


def describe_dropped(metrics: Mapping[str, float]) -> str:
    """Return ``"train: 3 missing text; test: 1 undecodable image"`` for what `dropped_metrics` put into `metrics`.

    A training sample counts once per epoch.
    """
    parts: dict[str, dict[str, int]] = {split: {} for split in SPLIT_ORDER}
    for name, count in metrics.items():
        split, _, cause = name.partition(f"/{_DROPPED}/")
        if cause:
            parts.setdefault(split, {})[cause.replace("_", " ")] = int(count)
    return "; ".join(f"{split}: {describe_bad(counts)}" for split, counts in parts.items() if counts)


_DROPPED = "dropped"


def describe_bad(bad: Mapping[str, int]) -> str:
    """Return ``"3 missing text, 1 undecodable image"``."""
    return ", ".join(f"{count} {cause}" for cause, count in sorted(bad.items())) or "no bad ones"
