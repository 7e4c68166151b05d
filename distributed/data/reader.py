"""The readers: one global seeded order to train, cut evenly over the ranks and resumable; every image once to evaluate.

Global batch t is places [tB, (t+1)B) of the epoch's order whatever the world size; rank r reads an even contiguous
slice of it. So every rank takes the same number of steps and every sample is read exactly once per epoch.
Shapes as in batch.py.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from allpairs.errors import UserError
from distributed.config.tree import Data
from distributed.data.batch import (
    Batch,
    MarginSource,
    Pair,
    Pick,
    Tokenize,
    TrainBatch,
    collate,
    refuse_too_bad,
    refuse_too_few,
)
from distributed.data.dataset import BadSampleError, Dataset
from distributed.data.draws import Purpose, choose
from distributed.data.images import Augment, augment_image, cached_side, decode_image, decode_regions
from distributed.data.order import EpochOrder, Position, batch_sizes, rank_slice
from distributed.data.prefetch import prefetch
from distributed.data.texts import text_id

if TYPE_CHECKING:
    import torch

    from allpairs.models.preprocessing import ImagePreprocessing


class TrainReader:
    """Reads this rank's share of every global batch.

    Args:
        dataset: what to read.
        data: how it is read; the section `data` of the configuration.
        global_batch: samples per step over all ranks.
        seed: decides order, captions and augmentation, together with the epoch.
        rank, world: this reader's place among `world` readers.
        tokenize: makes `tokens` from a batch's captions, in the background thread.
        preprocessing: a pretrained model's own; its side then takes the place of `data.image_size`.
        margins: gives each pair its margin; None leaves `Batch.margins` out.
        ahead: batches prepared in the background; 0 prepares in the calling thread.
        min_rows: no rank ever gets fewer rows per step.

    Attributes:
        steps_per_epoch: steps from the start of an epoch, the same on every rank.
        samples_per_epoch: the images, or with `data.epoch_unit: captions` the captions, of an epoch.
        seen: samples this rank has handed out or dropped since it was made.
        bad: the dropped ones, by cause.

    Raises:
        UserError: the data are too few for the world size, or a batch has fewer than 2 usable samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: Data,
        *,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        tokenize: Tokenize | None = None,
        preprocessing: "ImagePreprocessing | None" = None,
        margins: MarginSource | None = None,
        ahead: int = 2,
        min_rows: int = 2,
    ) -> None:
        assert 0 <= rank < world
        self.dataset = dataset
        self._data = data
        self._global_batch, self._rank, self._world, self._min_rows = global_batch, rank, world, min_rows
        self._seed, self._ahead, self._tokenize, self._margins = seed, ahead, tokenize, margins
        self._augment: Augment = data.augment if dataset.kind == "image" else "none"
        self._side = data.image_size if preprocessing is None else preprocessing.side
        self._loader = Loader(
            dataset,
            side=cached_side(self._side, self._augment),
            max_pixels=data.max_image_pixels,
            preprocessing=preprocessing,
            cache_mb=data.cache_mb,
        )
        self._captions = dataset.caption_counts()
        counts = np.ones(len(dataset), np.int64)
        if data.epoch_unit == "captions":
            counts = np.maximum(self._captions, 1)  # a row without any is met once, and counted as bad
        self._first_place = np.cumsum(counts) - counts
        self.samples_per_epoch = int(counts.sum())
        ends = np.cumsum([0, *dataset.shard_samples])
        self._shard_places = np.diff(np.append(self._first_place, self.samples_per_epoch)[ends]).tolist()
        self.steps_per_epoch = self.steps_left(self.start)
        self.seen = 0
        self.bad: Counter[str] = Counter()

    @property
    def start(self) -> Position:
        """The very first position."""
        return Position(self._seed)

    def steps_left(self, position: Position) -> int:
        """Return the steps from `position` to the end of its epoch."""
        return len(self._sizes(position))

    def steps_of(self, samples: int) -> int:
        """Return the steps after which `samples` samples were seen, from the start of the first epoch."""
        epochs, rest = divmod(samples, self.samples_per_epoch)
        seen = np.cumsum(self._sizes(self.start))
        return int(epochs * len(seen) + (np.searchsorted(seen, rest) + 1 if rest else 0))

    def batches(self, position: Position) -> Generator[TrainBatch, None, None]:
        """Yield this rank's batches from `position` to the end of its epoch.

        The last batch's `position` is the start of the next epoch. Leaving the loop stops the background threads.
        """
        for batch in prefetch(self._produce(position), self._ahead):
            self.seen += batch.seen
            self.bad.update(batch.bad)
            yield batch

    def check_bad_fraction(self) -> None:
        """Raise UserError when more than `max_bad_fraction` of what this rank has seen was bad."""
        refuse_too_bad(self.dataset, self.seen, self.bad, self._data.max_bad_fraction)

    def _sizes(self, position: Position) -> list[int]:
        if position.seed != self._seed:
            raise UserError(
                f"the position to resume from was made with seed {position.seed}, this run has seed {self._seed}"
            )
        if not 0 <= position.sample < self.samples_per_epoch:
            raise UserError(
                f"the position to resume from is sample {position.sample} of an epoch, but {self.dataset.folder} has "
                f"{self.samples_per_epoch} samples: it belongs to other data"
            )
        left = self.samples_per_epoch - position.sample
        return batch_sizes(left, self._global_batch, world=self._world, min_rows=self._min_rows)

    def _picks(self, places: np.ndarray) -> list[Pick]:
        """Return what the places of an epoch stand for: images, or captions, both in manifest order."""
        if self._data.epoch_unit == "images":
            return [Pick(int(row)) for row in places]
        rows = np.searchsorted(self._first_place, places, side="right") - 1
        return [Pick(int(row), int(place - self._first_place[row])) for row, place in zip(rows, places, strict=True)]

    def _draw(self, pick: Pick, epoch: int) -> list[int]:
        """Return the numbers of the captions that a place of an epoch shows."""
        if pick.caption is not None:
            return [pick.caption]
        available, count = int(self._captions[pick.row]), self._data.captions_per_image
        return choose(self._seed, epoch, Purpose.CAPTIONS, pick.row, available=available, count=count)

    def _margins_of(self, order: EpochOrder, first: int, size: int, part: slice, epoch: int) -> np.ndarray | None:
        """Return the margins of this rank's pairs in the global batch of `size` places from `first` on."""
        if self._margins is None:
            return None

        def pairs(cut: slice) -> list[Pair]:
            picks = self._picks(order.rows(first + cut.start, first + cut.stop))
            return [Pair(pick.row, self._draw(pick, epoch)[0] if self._captions[pick.row] else None) for pick in picks]

        return self._margins(pairs, size, part)

    def _produce(self, position: Position) -> Iterator[TrainBatch]:
        seed, epoch, sample = position.seed, position.epoch, position.sample
        order = EpochOrder(self._shard_places, seed=seed, epoch=epoch, window=self._data.shuffle_window)

        def load(pick: Pick) -> tuple[np.ndarray, list[str]]:
            row, number = pick
            image, captions = self._loader.load(row)
            place = row if number is None else int(self._first_place[row]) + number
            image = augment_image(image, self._side, self._augment, seed=seed, epoch=epoch, row=place)
            return image, [captions[i] for i in self._draw(pick, epoch)]

        with ThreadPoolExecutor(self._data.threads) if self._data.threads > 1 else nullcontext() as pool:
            for size in self._sizes(position):
                part = rank_slice(size, rank=self._rank, world=self._world)
                picks = self._picks(order.rows(sample + part.start, sample + part.stop))
                margins = self._margins_of(order, sample, size, part, epoch)
                sample += size
                after = Position(seed, epoch, sample) if sample < order.samples else Position(seed, epoch + 1)
                batch = collate(self.dataset, picks, load, tokenize=self._tokenize, pool=pool, margins=margins)
                refuse_too_few(self.dataset, picks, batch)
                content = vars(batch) | {"text_ids": self._text_ids(batch)}
                yield TrainBatch(**content, position=after, global_rows=size)

    def _text_ids(self, batch: Batch) -> "torch.Tensor | None":
        """Return which captions say the same, where that is to be masked."""
        if self._data.equal_captions == "negatives":
            return None
        import torch

        return torch.tensor([text_id(caption) for caption in batch.captions], dtype=torch.int64)


class Loader:
    """Reads and decodes single samples; safe to call from several threads.

    Args:
        dataset: the samples.
        side: image side in pixels (unused for regions).
        max_pixels: larger images are bad samples.
        preprocessing: a pretrained model's own, instead of `decode_image`'s resizing.
        cache_mb: keep decoded samples up to this many MiB.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        side: int,
        max_pixels: int,
        preprocessing: "ImagePreprocessing | None" = None,
        cache_mb: int = 0,
    ) -> None:
        self.dataset = dataset
        self._side, self._max_pixels, self._preprocessing = side, max_pixels, preprocessing
        # First come, first kept, never evicted: each epoch visits every row once, and under such cycles a cache that
        # evicts the oldest would never hit at all.
        self._cache: dict[int, tuple[np.ndarray, list[str]] | BadSampleError] = {}
        self._room = cache_mb * 2**20

    def load(self, row: int) -> tuple[np.ndarray, list[str]]:
        """Return the sample's array (``[3, S, S]`` uint8 or ``[R, F]`` float32; not to be written to) and its captions.

        Raises:
            BadSampleError: it cannot be used.
        """
        known = self._cache.get(row)
        if known is None:
            try:
                known = self._read(row)
            except BadSampleError as bad:
                known = bad
            self._keep(row, known)
        if isinstance(known, BadSampleError):
            raise BadSampleError(known.cause)
        return known

    def _read(self, row: int) -> tuple[np.ndarray, list[str]]:
        sample = self.dataset.read(row)
        if self.dataset.kind == "regions":
            return decode_regions(sample.data), sample.captions
        return decode_image(sample.data, self._side, self._max_pixels, self._preprocessing), sample.captions

    def _keep(self, row: int, entry: tuple[np.ndarray, list[str]] | BadSampleError) -> None:
        size = 64 if isinstance(entry, BadSampleError) else entry[0].nbytes + sum(map(len, entry[1]))
        if size <= self._room:  # two threads may both pass here: the bound is off by a sample at most
            self._room -= size
            self._cache[row] = entry


def evaluation_batches(
    dataset: Dataset,
    data: Data,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    tokenize: Tokenize | None = None,
    preprocessing: "ImagePreprocessing | None" = None,
    ahead: int = 2,
    dropped: Counter[str] | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's contiguous slice of the data set in batches of at most `batch` images.

    Ranks may get different numbers of batches (none, when there are fewer images than ranks): no collective belongs
    inside the loop. Bad samples are left out and counted by cause, in `dropped` too; a batch without a good one is not
    yielded.

    Raises:
        UserError: after the last batch, when more than `data.max_bad_fraction` of this rank's samples were bad.
    """
    seen, bad = 0, Counter[str]() if dropped is None else dropped
    side = data.image_size if preprocessing is None else preprocessing.side
    loader = Loader(dataset, side=side, max_pixels=data.max_image_pixels, preprocessing=preprocessing)

    def produce() -> Iterator[Batch]:
        mine = rank_slice(len(dataset), rank=rank, world=world)
        with ThreadPoolExecutor(data.threads) if data.threads > 1 else nullcontext() as pool:
            for start in range(mine.start, mine.stop, batch):
                picks = [Pick(row) for row in range(start, min(start + batch, mine.stop))]
                yield collate(dataset, picks, lambda pick: loader.load(pick.row), tokenize=tokenize, pool=pool)

    for part in prefetch(produce(), ahead):
        seen += part.seen
        bad.update(part.bad)
        if part.keys:
            yield part
    refuse_too_bad(dataset, seen, bad, data.max_bad_fraction)
