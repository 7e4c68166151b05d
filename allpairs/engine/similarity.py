"""How far positives and hardest negatives are apart over a whole global batch: the two curves of U-Fig. 4.

Shapes: b local pairs, B global pairs, D embedding, R rows of a block.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from allpairs.engine.agreement import Proposal, agree
from allpairs.engine.batch import Ids, prepare
from allpairs.engine.exchange import gather
from allpairs.engine.global_batch import GlobalBatch, Texts, own_scores
from allpairs.engine.products import as_given

if TYPE_CHECKING:
    import torch.distributed as dist


class SimilarityStatistics(NamedTuple):
    """Cosine similarities in [−1, 1], averaged over the global batch."""

    positive: float
    """Mean of d_i over all pairs."""
    hardest_negative: float
    """Mean of max_{j∈N(i)} S_ij over all anchors of both directions that have a negative; NaN if none has."""


@torch.no_grad()
def similarity_statistics(
    queries: Tensor,
    candidates: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    group: "dist.ProcessGroup | None" = None,
    normalize: bool = True,
    block: int = 1024,
) -> SimilarityStatistics:
    """Return the mean positive and mean hardest-negative similarity of the pairs of all ranks of `group`.

    `queries` and `candidates` are this process's [b, D]; `group=None` means this process alone. A collective: call it
    on every rank or on none. Ids as at an objective's call. Memory is O(B·D + block·B).

    Raises:
        UserError: as the objectives do, for pairs that cannot match.
    """
    with as_given(queries):
        batch, layout, *_ = agree(
            lambda: prepare(
                queries,
                candidates,
                query_ids=query_ids,
                candidate_ids=candidate_ids,
                text_ids=text_ids,
                normalize=normalize,
            ),
            lambda _: Proposal({"objective": "none, but similarity_statistics", "normalize": normalize}, {}),
            group,
        )
        ids_B = None if batch.ids.queries is None else gather(batch.ids.queries, layout.query_counts, group)
        ids = Ids(ids_B, ids_B)
        texts_B = None if batch.texts is None else gather(batch.texts, layout.query_counts, group)
        whole = GlobalBatch(ids, texts=None if texts_B is None else Texts.of(ids, texts_B, own_positive=True))
        # Sums of: positives, anchors, hardest negatives, anchors that have a negative.
        sums_4 = torch.zeros(4, dtype=torch.float64, device=batch.queries.device)
        sums_4[0] = 2 * own_scores(batch.queries, batch.candidates).double().sum()
        sums_4[1] = 2 * len(batch.queries)
        for anchors_bD, others_bD in ((batch.queries, batch.candidates), (batch.candidates, batch.queries)):
            others_BD = gather(others_bD, layout.query_counts, group)
            for start in range(0, len(anchors_bD), block):
                scores_RB = anchors_bD[start : start + block] @ others_BD.T
                first = layout.own_queries.start + start
                rows = range(first, first + len(scores_RB))
                tile = whole.query_tile(scores_RB, rows, layout.all_queries)
                hardest_R = tile.mask_negatives(scores_RB).amax(dim=1).double()
                has_negative_R = hardest_R > -torch.inf
                sums_4[2] += hardest_R[has_negative_R].sum()
                sums_4[3] += has_negative_R.sum()
    if layout.world_size > 1:
        torch.distributed.all_reduce(sums_4, group=group)
    positives, anchor_count, negatives, with_negative = sums_4.tolist()
    return SimilarityStatistics(
        positive=positives / anchor_count,
        hardest_negative=negatives / with_negative if with_negative else float("nan"),
    )
