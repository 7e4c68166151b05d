"""The readers with settings given one by one: those of the configuration's `data` section, and the readers' own."""

from collections.abc import Iterator
from typing import Any

from distributed.config.tree import Data
from distributed.data import Batch, Dataset, TrainReader
from distributed.data import evaluation_batches as batches_of


def _section(settings: dict[str, Any]) -> Data:
    return Data(**{key: settings.pop(key) for key in list(settings) if key in Data.model_fields})


def train_reader(dataset: Dataset, **settings: Any) -> TrainReader:
    return TrainReader(dataset, _section(settings), **settings)


def evaluation_batches(dataset: Dataset, **settings: Any) -> Iterator[Batch]:
    return batches_of(dataset, _section(settings), **settings)
