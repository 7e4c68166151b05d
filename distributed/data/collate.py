"""A list of rows becomes a batch: samples read by several threads, bad ones counted and left out.

Shapes as in batch.py.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from allpairs.errors import UserError
from distributed.data.batch import Batch, Tokenize
from distributed.data.dataset import BadSampleError, Dataset

MIN_GOOD_ROWS = 2  # a contrastive step needs a negative

# load(row) -> the array to stack and the captions to use; raises BadSampleError
Load = Callable[[int], tuple[np.ndarray, list[str]]]


def collate(
    dataset: Dataset, rows: Sequence[int], load: Load, *, tokenize: Tokenize | None, pool: Executor | None
) -> Batch:
    """Load `rows` (in the threads of `pool`, if given) into a batch; rows that are bad are missing from it.

    Raises:
        UserError: the arrays of the rows differ in shape.
    """
    import torch

    def attempt(row: int) -> tuple[np.ndarray, list[str]] | BadSampleError:
        try:
            return load(row)
        except BadSampleError as bad:
            return bad

    loaded = list(pool.map(attempt, rows) if pool else map(attempt, rows))
    good = [(row, *sample) for row, sample in zip(rows, loaded, strict=True) if not isinstance(sample, BadSampleError)]
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
        seen=len(rows),
        bad=dict(Counter(sample.cause for sample in loaded if isinstance(sample, BadSampleError))),
    )


def refuse_too_few(dataset: Dataset, rows: Sequence[int], batch: Batch) -> None:
    """Raise UserError when fewer than two of a training batch's `rows` were good, naming where they lie."""
    if len(batch.keys) < MIN_GOOD_ROWS:
        named = "; ".join(dataset.where(row) for row in rows[:4]) + (" …" if len(rows) > 4 else "")
        raise UserError(
            f"a batch of {len(rows)} samples has {describe_bad(batch.bad)}: fewer than the {MIN_GOOD_ROWS} good ones "
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


def describe_bad(bad: Mapping[str, int]) -> str:
    """Return ``"3 missing text, 1 undecodable image"``."""
    return ", ".join(f"{count} {cause}" for cause, count in sorted(bad.items())) or "no bad ones"
