"""Ensembles of runs: the mean of their score matrices, as one set of embeddings."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retrieval_eval.embeddings import EmbeddingSet
from retrieval_eval.same_queries import check_same_queries


def ensemble(sets: Sequence[EmbeddingSet], names: Sequence[str]) -> EmbeddingSet:
    """Return embeddings whose dot products are the mean of those of `sets`; UserError if their queries differ.

    For n runs with embeddings q_r and g_r, of any widths, ::

        [q_1; ...; q_n]/sqrt(n) . [g_1; ...; g_n]/sqrt(n)  =  (q_1.g_1 + ... + q_n.g_n)/n

    so that everything that works on embeddings works on the ensemble, exactly and without a matrix of scores. (Of unit
    vectors these are unit vectors again. Embeddings that are not normalised weigh a run by their lengths.) The joined
    embeddings are held in memory, also where the runs' own are files.
    """
    check_same_queries(sets, names)
    if len(sets) == 1:
        return sets[0]
    scale = np.float32(1 / np.sqrt(len(sets)))
    return replace(
        sets[0],
        images=np.concatenate([one.images for one in sets], axis=1) * scale,
        captions=np.concatenate([one.captions for one in sets], axis=1) * scale,
    )
