"""CIDEr-D between captions of a data set, exactly and for many pairs at once.

CIDEr-D (Vedantam, Zitnick & Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, section 5) of a
candidate c against the captions Φ of an image: for n-grams of 1 to 4 words, with g_ω = tf-idf of the n-gram ω,

    CIDEr-D_n(c, Φ) = 10/|Φ| Σ_{s∈Φ} e^{−(l(c) − l(s))² / 2σ²} Σ_ω min(g_ω(c), g_ω(s)) · g_ω(s) / (‖g(c)‖ ‖g(s)‖)

and the mean over the four n. tf is a count; idf is log(N/df), with N images of which df have ω in some caption; l is a
number of words; σ = 6. **[decided]** Words are runs of letters and digits of the lower-cased caption (NFKC), as in
`allpairs.models.Vocabulary`; the published scorer splits with the Penn Treebank's tokenizer, which needs Java.

Legend: T words of all captions, C candidates, R references, G different n-grams.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = 4
SIGMA = 6.0
_WORD = re.compile(r"[^\W_]+")


def words_of(caption: str) -> list[str]:
    """Return the words of a caption."""
    return _WORD.findall(unicodedata.normalize("NFKC", caption).lower())


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one length."""

    ids_T: np.ndarray
    """int64: which n-gram begins at each word; −1 where the caption ends too early."""
    idf_G: np.ndarray


class CiderD:
    """CIDEr-D among the captions of a data set, whose images are the documents that idf counts.

    Args:
        captions: every image's captions (none for an image that has none to use), which are then numbered in turn.

    Memory is 40 bytes a word.
    """

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        known: dict[str, int] = {}
        words: list[int] = []
        lengths: list[int] = []
        counts: list[int] = []
        for texts in captions:
            counts.append(len(texts))
            for text in texts:
                ids = [known.setdefault(word, len(known)) for word in words_of(text)]
                words += ids
                lengths.append(len(ids))
        self.first_caption = np.cumsum([0, *counts])
        """``[images + 1]``: the number of each image's first caption."""
        self._lengths = np.array(lengths, dtype=np.int64)
        self._start = np.cumsum(self._lengths) - self._lengths
        image_T = np.repeat(np.repeat(np.arange(len(counts)), counts), self._lengths)
        documents = int(np.count_nonzero(counts))
        ids_T = words_T = np.array(words, dtype=np.int64)
        left_T = np.repeat(self._start + self._lengths, self._lengths) - np.arange(len(words_T))  # words to the end
        self._grams = [_Grams(ids_T, _idf(ids_T, image_T, documents))]
        for n in range(2, LONGEST + 1):
            begins = np.flatnonzero(left_T >= n)
            # An n-gram is the shorter one that it begins with, and one word more.
            pairs = ids_T[begins] * max(1, len(known)) + words_T[begins + n - 1]
            ids_T = np.full(len(words_T), -1)
            ids_T[begins] = np.unique(pairs, return_inverse=True)[1]
            self._grams.append(_Grams(ids_T, _idf(ids_T, image_T, documents)))

    def matrix(self, candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Return CIDEr-D ``[R, C]`` of each candidate caption against each single reference, both by their numbers.

        That against several references is the mean over them. Memory and time are of the pairs of n-grams in common.
        """
        difference_RC = self._lengths[references][:, None] - self._lengths[candidates]
        total_RC = np.zeros(difference_RC.shape)
        for grams in self._grams:
            total_RC += self._cosine(grams, candidates, references)
        return 10 / LONGEST * total_RC * np.exp(-(difference_RC**2) / (2 * SIGMA**2))

    def _cosine(self, grams: _Grams, candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
        rows_c, ids_c, values_c, norms_C = self._vectors(grams, candidates)
        rows_r, ids_r, values_r, norms_R = self._vectors(grams, references)
        order = np.argsort(ids_c, kind="stable")
        rows_c, ids_c, values_c = rows_c[order], ids_c[order], values_c[order]
        first, last = np.searchsorted(ids_c, ids_r, "left"), np.searchsorted(ids_c, ids_r, "right")
        shared = last - first
        # For every n-gram of a reference, all candidates that have it too.
        of_r = np.repeat(np.arange(len(ids_r)), shared)
        of_c = np.arange(len(of_r)) + np.repeat(first - (np.cumsum(shared) - shared), shared)
        clipped = np.minimum(values_c[of_c], values_r[of_r]) * values_r[of_r]
        shape = len(references), len(candidates)
        products = np.bincount(rows_r[of_r] * shape[1] + rows_c[of_c], clipped, minlength=shape[0] * shape[1])
        norms_RC = norms_R[:, None] * norms_C
        return np.divide(products.reshape(shape), norms_RC, out=np.zeros(shape), where=norms_RC > 0)

    def _vectors(self, grams: _Grams, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the tf-idf vectors of captions as (row, n-gram, value) of what is not zero, and their lengths."""
        lengths = self._lengths[numbers]
        rows = np.repeat(np.arange(len(numbers)), lengths)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ids = grams.ids_T[self._start[numbers][rows] + place]
        kept = ids >= 0
        kept[kept] = grams.idf_G[ids[kept]] > 0
        size = max(1, len(grams.idf_G))
        keys, counts = np.unique(rows[kept] * size + ids[kept], return_counts=True)
        rows, ids = keys // size, keys % size
        values = counts * grams.idf_G[ids]
        return rows, ids, values, np.sqrt(np.bincount(rows, values**2, minlength=len(numbers)))


def _idf(ids_T: np.ndarray, image_T: np.ndarray, documents: int) -> np.ndarray:
    """Return log(N/df) of each n-gram, df being the number of images with a caption that has it."""
    begins = ids_T >= 0
    different = int(ids_T.max(initial=-1)) + 1
    in_image = np.sort(image_T[begins] * max(1, different) + ids_T[begins])
    in_image = in_image[np.diff(in_image, prepend=-1) > 0]  # each once
    return np.log(documents) - np.log(np.bincount(in_image % max(1, different), minlength=different))
