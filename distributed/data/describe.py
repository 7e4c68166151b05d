"""What a data set looks like: counts, caption lengths, image sizes, vocabulary, a few examples."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from distributed.data.dataset import BadSampleError, Dataset, open_dataset
from distributed.data.images import decode_regions, open_image
from distributed.data.shards import readable

_WORD = re.compile(r"\w+")
_MEASURED = 1000  # images whose size is read, evenly over the data set
_EXAMPLES = 3


def describe_folder(folder: Path) -> dict[str, Any]:
    """Return the description of one split as JSON-ready values. Raises UserError when it cannot be opened."""
    dataset = open_dataset(folder)
    lengths: Counter[int] = Counter()
    words: Counter[str] = Counter()
    for caption in dataset.all_captions():
        found = _WORD.findall(caption.lower())
        lengths[len(found)] += 1
        words.update(found)
    shared = dataset.texts().shared()
    return {
        "folder": readable(folder),
        "name": dataset.manifest.name,
        "split": dataset.manifest.split,
        "kind": dataset.kind,
        "samples": len(dataset),
        "captions": dataset.manifest.captions,
        "captions_per_sample": dataset.manifest.captions / max(1, len(dataset)),
        "shared_captions": shared._asdict(),
        "shards": len(dataset.manifest.shards),
        "bytes": sum(shard.bytes for shard in dataset.manifest.shards),
        "words_per_caption": _quantiles(lengths),
        "vocabulary": len(words),
        "commonest_words": [word for word, _ in words.most_common(10)],
        "sizes": dict(_sizes(dataset).most_common(5)),
        "examples": _examples(dataset),
    }


def _quantiles(counts: Counter[int]) -> dict[str, float]:
    if not counts:
        return {}
    values = np.repeat(list(counts.keys()), list(counts.values()))
    low, median, high, top = np.quantile(values, (0, 0.5, 0.95, 1), method="inverted_cdf").tolist()
    return {"min": low, "median": median, "mean": round(float(values.mean()), 2), "95%": high, "max": top}


def _spread(dataset: Dataset, count: int) -> list[int]:
    return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist()


def _sizes(dataset: Dataset) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for row in _spread(dataset, _MEASURED):
        try:
            data = dataset.read(row).data
            if dataset.kind == "regions":
                shape = decode_regions(data).shape
                sizes[f"{shape[0]} regions × {shape[1]}"] += 1
            else:
                image = open_image(data, max_pixels=2**62)
                sizes[f"{image.width}×{image.height} {image.format}"] += 1
        except BadSampleError as bad:
            sizes[bad.cause] += 1
    return sizes


def _examples(dataset: Dataset) -> list[dict[str, Any]]:
    examples = []
    for row in _spread(dataset, _EXAMPLES):
        try:
            examples.append({"key": dataset.key(row), "captions": dataset.captions(row)})
        except BadSampleError as bad:
            examples.append({"key": dataset.key(row), "captions": [f"({bad})"]})
    return examples
