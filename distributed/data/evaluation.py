"""The evaluation reader: every image once, in manifest order, with all its captions. Shapes as in batch.py."""

from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from distributed.data.batch import Batch, Tokenize
from distributed.data.collate import collate, refuse_too_bad
from distributed.data.dataset import Dataset
from distributed.data.loader import Loader
from distributed.data.order import rank_slice
from distributed.data.prefetch import prefetch as in_background


def evaluation_batches(
    dataset: Dataset,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    image_size: int = 64,
    max_image_pixels: int = 50_000_000,
    max_bad_fraction: float = 0.01,
    prefetch: int = 2,
    threads: int = 2,
    tokenize: Tokenize | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's contiguous slice of the data set in batches of at most `batch` images.

    Ranks may get different numbers of batches (none, when there are fewer images than ranks): no collective belongs
    inside the loop. Bad samples are left out and counted; a batch without a good one is not yielded.

    Raises:
        UserError: after the last batch, when more than `max_bad_fraction` of this rank's samples were bad.
    """
    seen, bad = 0, Counter[str]()
    loader = Loader(dataset, side=image_size, max_pixels=max_image_pixels)

    def produce() -> Iterator[Batch]:
        mine = rank_slice(len(dataset), rank=rank, world=world)
        with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
            for start in range(mine.start, mine.stop, batch):
                rows = range(start, min(start + batch, mine.stop))
                yield collate(dataset, rows, loader.load, tokenize=tokenize, pool=pool)

    for part in in_background(produce(), prefetch):
        seen += part.seen
        bad.update(part.bad)
        if part.keys:
            yield part
    refuse_too_bad(dataset, seen, bad, max_bad_fraction)
