"""From rows to decoded samples, with a bounded cache so that a small data set is decoded once.

Shapes: S side in pixels · R regions · F features.
"""

import numpy as np

from distributed.data.dataset import BadSampleError, Dataset
from distributed.data.images import decode_image, decode_regions


class Loader:
    """Reads and decodes single samples; safe to call from several threads.

    Args:
        dataset: the samples.
        side: image side in pixels (unused for regions).
        max_pixels: larger images are bad samples.
        cache_mb: keep decoded samples up to this many MiB.
    """

    def __init__(self, dataset: Dataset, *, side: int, max_pixels: int, cache_mb: int = 0) -> None:
        self.dataset = dataset
        self._side, self._max_pixels = side, max_pixels
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
        return decode_image(sample.data, self._side, self._max_pixels), sample.captions

    def _keep(self, row: int, entry: tuple[np.ndarray, list[str]] | BadSampleError) -> None:
        size = 64 if isinstance(entry, BadSampleError) else entry[0].nbytes + sum(map(len, entry[1]))
        if size <= self._room:  # two threads may both pass here: the bound is off by a sample at most
            self._room -= size
            self._cache[row] = entry
