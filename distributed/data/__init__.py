"""Image–text data: build it, check it, read it in a seeded order that resumes exactly at any world size.

``python -m distributed.data build|validate|describe`` makes and inspects data sets; training and evaluation read them
with `open_dataset`, `TrainReader` and `evaluation_batches`.
"""

from distributed.data.batch import Batch, TrainBatch
from distributed.data.dataset import Dataset, RawSample, open_dataset
from distributed.data.evaluation import evaluation_batches
from distributed.data.position import Position
from distributed.data.reader import TrainReader

__all__ = [
    "Batch",
    "Dataset",
    "Position",
    "RawSample",
    "TrainBatch",
    "TrainReader",
    "evaluation_batches",
    "open_dataset",
]
