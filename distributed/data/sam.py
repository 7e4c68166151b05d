"""SAM: margins from what captions say (Biten et al., "Is An Image Worth Five Sentences?", WACV 2022, arXiv 2110.02623).

A negative that says nearly the same should not be pushed as far away as one that says something else. Their margin of
an image with captions Φ_i, its caption c_i and a negative caption c_j is (φ(c_i, Φ_i) − φ(c_j, Φ_i)) / τ, at most 1,
with φ CIDEr-D; the loss is the one with the usual margin plus a weight times the one with these.

**[decided]** Unified Eq. 26 and the objectives here have one margin per pair, theirs one per pair and negative, for a
negative drawn at random or taken by its score. Here c_j is the caption of another image of the global batch with the
largest φ(c_j, Φ_i), for both directions:

    m_i = min(1, (φ(c_i, Φ_i) − max_{j∈N(i)} φ(c_j, Φ_i)) / τ)

so that a pair is asked for no more distance than its nearest negative differs in meaning; below 0 where that caption
describes the image better than its own. idf is that of the images of the training split; N(i) are all places of the
global batch with another image, those whose picture turns out to be unusable included, and with
``data.equal_captions: masked`` another text.
"""

from collections.abc import Callable
from itertools import groupby

import numpy as np

from distributed.data.batch import PairsOf
from distributed.data.cider import CiderD
from distributed.data.dataset import Dataset
from distributed.data.texts import text_ids

_AT_A_TIME = 2**24
"""Entries of a matrix that is held at once: 128 MiB."""


class SemanticMargins:
    """Margins of SAM for the pairs of `dataset`, with temperature τ."""

    def __init__(
        self,
        dataset: Dataset,
        temperature: float,
        say: Callable[[str], None] = lambda text: None,
        *,
        mask_equal: bool = False,
    ) -> None:
        say(f"margins.source=sam: counting the n-grams of {dataset.manifest.captions:,} captions")
        self._cider = CiderD(captions for _, captions in dataset.captions_by_key())
        self._temperature = temperature
        self._texts = text_ids(dataset.all_captions()) if mask_equal else None

    def __call__(self, pairs: PairsOf, size: int, part: slice) -> np.ndarray:
        """Compare the captions of the whole global batch with those of this rank's images."""
        whole = pairs(slice(0, size))
        places = [place for place, pair in enumerate(whole) if pair.caption is not None]
        first = self._cider.first_caption
        rows_C = np.array([whole[place].row for place in places], dtype=np.int64)
        captions_C = first[rows_C] + np.array([whole[place].caption for place in places], dtype=np.int64)
        mine = [column for column, place in enumerate(places) if part.start <= place < part.stop]
        margins = np.zeros(part.stop - part.start)
        # Some images at a time: the matrix of all their captions is the largest thing.
        budget = max(1, _AT_A_TIME // max(1, len(captions_C)))
        cumulated = np.cumsum([first[rows_C[i] + 1] - first[rows_C[i]] for i in mine])
        for _, group in groupby(zip(mine, cumulated // budget, strict=True), key=lambda each: each[1]):
            some = np.array([column for column, _ in group])
            values = self._margins(some, rows_C, captions_C)
            margins[[places[column] - part.start for column in some]] = values
        return margins

    def _margins(self, some: np.ndarray, rows_C: np.ndarray, captions_C: np.ndarray) -> np.ndarray:
        first = self._cider.first_caption
        counts = first[rows_C[some] + 1] - first[rows_C[some]]
        references = np.concatenate([np.arange(first[row], first[row + 1]) for row in rows_C[some]])
        scores = self._cider.matrix(captions_C, references)
        scores_sC = np.add.reduceat(scores, np.cumsum(counts) - counts, axis=0) / counts[:, None]
        own = scores_sC[np.arange(len(some)), some]
        negative_sC = rows_C[some][:, None] != rows_C
        if self._texts is not None:
            texts_C = self._texts[captions_C]
            negative_sC &= texts_C[some][:, None] != texts_C
        nearest = np.where(negative_sC, scores_sC, -np.inf).max(axis=1)
        nearest[np.isneginf(nearest)] = 0.0
        return np.minimum(1.0, (own - nearest) / self._temperature)
