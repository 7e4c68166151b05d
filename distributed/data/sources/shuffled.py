"""A data set some of whose training pairs do not match, to measure what such pairs cost: for experiments alone.

A seeded share of the training captions is taken out of their places and put back in a drawn order, as NCR (Huang et
al., NeurIPS 2021) makes its noisy benchmarks; the other splits are copied. Which captions moved can be seen by
comparing with the data set it was made from: keys and places are the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from allpairs.errors import UserError
from distributed.data.dataset import BadSampleError, Dataset, open_dataset
from distributed.data.draws import Purpose, permutation
from distributed.data.manifest import SPLIT_ORDER, Kind, Manifest, split_folders
from distributed.data.writer import Sample


def shuffle_splits(
    folder: Path, *, fraction: float, seed: int
) -> tuple[dict[str, Iterator[Sample]], Kind, dict[str, Any]]:
    """Return the samples per split of the data set in `folder`, its kind, and what a manifest should say of the source.

    Raises:
        UserError: no data set with a training split, a sample that cannot be used, or a `fraction` outside 0 to 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction {fraction:g}: accepted is more than 0, and at most 1")
    datasets = {path.name: open_dataset(path) for path in split_folders(folder) if path.name in SPLIT_ORDER}
    if "train" not in datasets:
        raise UserError(f"{folder}: no train in it, whose captions could be shuffled; it has {', '.join(datasets)}")
    train = datasets["train"]
    counts = train.caption_counts()
    texts = list(train.all_captions())
    sources = caption_sources(len(texts), fraction=fraction, seed=seed)
    rows = np.repeat(np.arange(len(counts)), counts)
    about = {
        "kind": "shuffled",
        "of": train.manifest.source,
        "fraction": fraction,
        "seed": seed,
        "captions_of_other_images": int((rows != rows[sources]).sum()),
    }
    captions = iter(texts[source] for source in sources)
    splits = {split: _samples(dataset) for split, dataset in datasets.items()}
    splits["train"] = (
        Sample(sample.key, sample.suffix, sample.data, [next(captions) for _ in sample.captions])
        for sample in splits["train"]
    )
    return splits, train.kind, about


def caption_sources(captions: int, *, fraction: float, seed: int) -> np.ndarray:
    """Return for each of so many places the caption that now stands there: int64 `[captions]`.

    The captions that change are drawn, and each goes to the next one's place in another drawn order.
    """
    sources = np.arange(captions)
    moved = permutation(seed, 0, Purpose.SHUFFLED_PAIRS, sources)[: round(fraction * captions)]
    order = moved[permutation(seed, 0, Purpose.SHUFFLED_PLACES, moved)]
    sources[np.roll(order, -1)] = order
    return sources


def note_of(manifest: Manifest) -> str | None:
    """Say that a split's pairs were broken on purpose, where they were."""
    source = manifest.source
    if source.get("kind") != "shuffled" or manifest.split != "train":
        return None
    return (
        f"{100 * source['fraction']:g} % of the training captions were shuffled for an experiment: "
        f"{source['captions_of_other_images']:,} of {manifest.captions:,} stand with another image"
    )


def _samples(dataset: Dataset) -> Iterator[Sample]:
    for row in range(len(dataset)):
        try:
            sample = dataset.read(row)
        except BadSampleError as bad:
            raise UserError(f"{dataset.where(row)}: {bad.cause}; accepted is a data set without such samples") from None
        yield Sample(sample.key, sample.suffix, sample.data, sample.captions)
