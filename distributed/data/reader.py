"""The training reader: one global seeded order, cut evenly over the ranks, resumable at any sample and any world size.

Global batch t is places [tB, (t+1)B) of the epoch's order whatever the world size; rank r reads an even contiguous
slice of it. So every rank takes the same number of steps and every sample is read exactly once per epoch.
Shapes as in batch.py.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np

from allpairs.errors import UserError
from distributed.data.augment import Augment, augment_image, cached_side
from distributed.data.batch import Tokenize, TrainBatch
from distributed.data.collate import collate, refuse_too_bad, refuse_too_few
from distributed.data.dataset import Dataset
from distributed.data.draws import Purpose, choose
from distributed.data.loader import Loader
from distributed.data.order import EpochOrder, batch_sizes, rank_slice
from distributed.data.position import Position
from distributed.data.prefetch import prefetch


class TrainReader:
    """Reads this rank's share of every global batch.

    Args:
        dataset: what to read.
        global_batch: samples per step over all ranks.
        seed: decides order, captions and augmentation, together with the epoch.
        rank, world: this reader's place among `world` readers.
        image_size: S, the side of the images in pixels (unused for regions).
        captions_per_image: k captions per image and step, distinct where the image has as many.
        shuffle_window: samples are shuffled within this many (see order.py).
        augment: ``none``, ``crop`` or ``crop_flip`` (images only; a flip makes captions with left and right untrue).
        max_image_pixels: larger images are bad samples; checked before decoding.
        max_bad_fraction: what `check_bad_fraction` allows.
        cache_mb: decoded samples kept in memory, in MiB.
        prefetch: batches prepared ahead; 0 prepares in the calling thread.
        threads: threads that decode.
        min_rows: no rank ever gets fewer rows per step.
        tokenize: makes `tokens` from a batch's captions, in the background thread.

    Attributes:
        steps_per_epoch: steps from the start of an epoch, the same on every rank.
        seen: samples this rank has handed out or dropped since it was made.
        bad: the dropped ones, by cause.

    Raises:
        UserError: the data are too few for the world size, or a batch has fewer than 2 usable samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        image_size: int = 64,
        captions_per_image: int = 1,
        shuffle_window: int = 16384,
        augment: Augment = "none",
        max_image_pixels: int = 50_000_000,
        max_bad_fraction: float = 0.01,
        cache_mb: int = 512,
        prefetch: int = 2,
        threads: int = 2,
        min_rows: int = 2,
        tokenize: Tokenize | None = None,
    ) -> None:
        assert 0 <= rank < world
        self.dataset = dataset
        self._global_batch, self._rank, self._world, self._min_rows = global_batch, rank, world, min_rows
        self._seed, self._window, self._captions_per_image = seed, shuffle_window, captions_per_image
        self._side = image_size
        self._augment: Augment = augment if dataset.kind == "image" else "none"
        self._max_bad_fraction = max_bad_fraction
        self._depth, self._threads, self._tokenize = prefetch, threads, tokenize
        side = cached_side(image_size, self._augment)
        self._loader = Loader(dataset, side=side, max_pixels=max_image_pixels, cache_mb=cache_mb)
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

    def batches(self, position: Position) -> Generator[TrainBatch, None, None]:
        """Yield this rank's batches from `position` to the end of its epoch.

        The last batch's `position` is the start of the next epoch. Leaving the loop stops the background threads.
        """
        for batch in prefetch(self._produce(position), self._depth):
            self.seen += batch.seen
            self.bad.update(batch.bad)
            yield batch

    def check_bad_fraction(self) -> None:
        """Raise UserError when more than `max_bad_fraction` of what this rank has seen was bad."""
        refuse_too_bad(self.dataset, self.seen, self.bad, self._max_bad_fraction)

    def _sizes(self, position: Position) -> list[int]:
        if position.seed != self._seed:
            raise UserError(
                f"the position to resume from was made with seed {position.seed}, this run has seed {self._seed}"
            )
        if not 0 <= position.sample < len(self.dataset):
            raise UserError(
                f"the position to resume from is sample {position.sample} of an epoch, but {self.dataset.folder} has "
                f"{len(self.dataset)} samples: it belongs to other data"
            )
        left = len(self.dataset) - position.sample
        return batch_sizes(left, self._global_batch, world=self._world, min_rows=self._min_rows)

    def _produce(self, position: Position) -> Iterator[TrainBatch]:
        seed, epoch, sample = position.seed, position.epoch, position.sample
        order = EpochOrder(self.dataset.shard_samples, seed=seed, epoch=epoch, window=self._window)

        def load(row: int) -> tuple[np.ndarray, list[str]]:
            image, captions = self._loader.load(row)
            image = augment_image(image, self._side, self._augment, seed=seed, epoch=epoch, row=row)
            drawn = choose(seed, epoch, Purpose.CAPTIONS, row, available=len(captions), count=self._captions_per_image)
            return image, [captions[i] for i in drawn]

        with ThreadPoolExecutor(self._threads) if self._threads > 1 else nullcontext() as pool:
            for size in self._sizes(position):
                part = rank_slice(size, rank=self._rank, world=self._world)
                rows = [int(row) for row in order.rows(sample + part.start, sample + part.stop)]
                sample += size
                after = Position(seed, epoch, sample) if sample < order.samples else Position(seed, epoch + 1)
                batch = collate(self.dataset, rows, load, tokenize=self._tokenize, pool=pool)
                refuse_too_few(self.dataset, rows, batch)
                yield TrainBatch(**vars(batch), position=after, global_rows=size)
