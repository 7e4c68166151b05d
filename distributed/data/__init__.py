"""Image–text data: build it, check it, read it in a seeded order that resumes exactly at any world size.

``python -m distributed.data build|validate|describe`` makes and inspects data sets; training and evaluation read them
with `open_dataset`, `TrainReader` and `evaluation_batches`.

- `manifest`, `index`, `shards`: what a data set folder holds, where each member of each sample lies, walking a tar.
- `documents`: JSON from others, read as the shape it should have.
- `pictures`: the same picture twice, and captions without a word; `texts`: the same caption under several images.
- `dataset`: a folder open for reading; `verify`: its shards compared with their hashes.
- `columns`, `margins`, `sam`, `cider`: one margin per pair: numbers that come with the data, or from captions.
- `draws`, `order`: seeded draws, and the global order of an epoch.
- `images`: decoding and augmentation.
- `batch`, `reader`, `prefetch`: batches, the two readers, work ahead in a thread.
- `writer`, `build`, `sources`, `scenes`: making data sets.
- `build_commands`, `validate`, `describe`: the commands.
"""

from distributed.data.batch import Batch, TrainBatch
from distributed.data.dataset import Dataset, RawSample, open_dataset
from distributed.data.order import Position
from distributed.data.reader import TrainReader, evaluation_batches
from distributed.data.verify import open_split

__all__ = [
    "Batch",
    "Dataset",
    "Position",
    "RawSample",
    "TrainBatch",
    "TrainReader",
    "evaluation_batches",
    "open_dataset",
    "open_split",
]
