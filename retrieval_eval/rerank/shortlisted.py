"""Re-ranking: the first k of every query by pooled vectors, ordered by a scorer; the rest stays as it was.

An item outside the shortlist keeps its place of the first stage, behind the k. (A score of -100 for all of them, as in
ALBEF's evaluation, ties them: their ranks then say how the ties were broken.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from allpairs.errors import UserError
from retrieval_eval.inputs import Matrix, blocks, pair_to_rank
from retrieval_eval.metrics import metric_of
from retrieval_eval.positives import Positives
from retrieval_eval.report import Report, report_fields
from retrieval_eval.rerank.exhaustive import score_all
from retrieval_eval.rerank.result import Reranked, ordered, with_scores
from retrieval_eval.rerank.scoring import BATCH, Form, Job, Map, Progress, Score, answers, check_form
from retrieval_eval.shortlist import shortlist
from retrieval_eval.tiles import exact_float32


def rerank(
    score: Score,
    queries: Matrix,
    gallery: Matrix,
    report: Report,
    *,
    k: int | None = 128,
    form: Form = "pairs",
    batch: int = BATCH,
    map: Map = map,
    progress: Progress | None = None,
) -> Reranked:
    """Order the first k of `gallery` [M, D] for each of `queries` [N, D] by `score`, in the directions of `report`.

    `report` is what `evaluate` found for these pooled vectors: it brings the positives, the k of the recalls, and
    whether the first stage ranks by cosine similarity. With k=None every pair is scored and the vectors are not used
    (`score_all`).

    `score` gets rows of queries and of the gallery, as int64 arrays. In the form ``pairs`` both have P entries, at most
    `batch`, and it returns P scores; in the form ``tiles`` they have q and g, and it returns scores [q, g] (one query
    at a time with items of its shortlist). A pair in the shortlists of both directions is scored once. `map` does the
    calls: the built-in one here, `over_actors` in Ray actors, or any that keeps their order, as that of an executor.
    `progress` is told how many pairs are scored, and of how many.

    Scores are compared as float32. The result does not depend on `map`, if the scorer's answers do not. Memory beyond
    the embeddings: a few numbers per shortlisted pair, and 64 MiB (more for galleries of over 16 million).

    Raises UserError, with the rows, for a scorer that returns a wrong shape or a score that is not finite.
    """
    check_form(form, batch)
    if k is not None and k < 1:
        raise UserError(f"k={k}; accepted: items per query to re-rank, 1 or more, or None for all pairs")
    forward, *backward = report.directions
    if k is None:
        query_name, gallery_name = forward.split("2", 1)
        return score_all(
            score, report.positives[forward], ks=report.ks, query_name=query_name, gallery_name=gallery_name,
            both_directions=bool(backward), form=form, batch=batch, map=map, progress=progress, first_stage=report,
        )  # fmt: skip
    Q, G = pair_to_rank(queries, gallery, cosine=report.cosine)
    if (len(Q), len(G)) != (report.queries(forward), report.gallery(forward)):
        raise UserError(
            f"got {len(Q)} queries and a gallery of {len(G)}, but the report is of {report.queries(forward)} and"
            f" {report.gallery(forward)}; accepted: the embeddings that it was made of"
        )
    sides = {forward: (Q, G), **dict.fromkeys(backward, (G, Q))}
    found = {direction: shortlist(*both, k).indices for direction, both in sides.items()}  # [N, k] each
    # One number per pair: its query row · M + its gallery row, whichever of the two asks.
    pairs = {
        direction: indices + np.arange(len(indices))[:, None] * len(G)
        if direction == forward
        else indices * len(G) + np.arange(len(indices))[:, None]
        for direction, indices in found.items()
    }
    every = np.sort(np.concatenate([each.ravel() for each in pairs.values()]))
    every = every[np.r_[True, np.diff(every) > 0]]  # np.unique hashes first, which is slower
    given = answers(score, _jobs(every, len(G), form, batch), form=form, map=map, progress=progress, total=len(every))
    scores = np.concatenate([values.ravel() for values in given])

    placed = {
        direction: place(
            *sides[direction], report.positives[direction], indices, scores[np.searchsorted(every, pairs[direction])]
        )
        for direction, indices in found.items()
    }
    sets = report.positives
    counts = {direction: ordered(sets[direction], at.greater, at.equal) for direction, at in placed.items()}
    ideal = {direction: ordered(sets[direction], *at.best()) for direction, at in placed.items()}
    fields = with_scores(
        report_fields(counts, sets, report.ks), {direction: at.score for direction, at in placed.items()}
    )
    ceiling = report_fields(ideal, sets, report.ks)["metrics"]
    bounded = {f"ceiling/{name}": value for name, value in ceiling.items() if metric_of(name).bounded}
    fields["metrics"] = fields["metrics"] | bounded
    reached = {direction: at.reached for direction, at in placed.items()}
    return Reranked(**fields, cosine=report.cosine, k=k, pairs=len(every), reached=reached, first_stage=report)


def _jobs(pairs: np.ndarray, gallery: int, form: Form, batch: int) -> Iterator[Job]:
    """Cut ascending pairs into calls of at most `batch`: wherever that falls, or query by query."""
    if form == "pairs":
        for start in range(0, len(pairs), batch):
            queries, items = np.divmod(pairs[start : start + batch], gallery)
            yield queries, items
        return
    for own in np.split(pairs, np.flatnonzero(np.diff(pairs // gallery)) + 1):
        for start in range(0, len(own), batch):
            yield own[:1] // gallery, own[start : start + batch] % gallery


# N queries, M gallery items, K items of a shortlist, P positive pairs, R queries of a strip.

STRIP = 2**24  # scores of R queries with the whole gallery, held together: 64 MiB


@dataclass(frozen=True, eq=False)
class Placed:
    """Counts per positive pair, [P] each, in the order of `Positives.indices`."""

    owners: np.ndarray
    reached: np.ndarray  # in the shortlist?
    score: np.ndarray  # float32, the scorer's where reached, else the first stage's
    greater: np.ndarray  # items ranked above
    equal: np.ndarray  # items level with it, itself included

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `greater` and `equal` if the scorer put every positive of the shortlist first, all level."""
        first = np.bincount(self.owners[self.reached], minlength=int(self.owners.max()) + 1)[self.owners]
        return np.where(self.reached, 0, self.greater), np.where(self.reached, first, self.equal)


def place(
    asking: torch.Tensor, answering: torch.Tensor, positives: Positives, found: np.ndarray, second: np.ndarray
) -> Placed:
    """Place the positives, given the shortlists `found` [N, K] and the scorer's scores `second` [N, K] of their items.

    `asking` [N, D] and `answering` [M, D] are the first stage, by which items behind the shortlist are ordered.
    """
    owners, k = positives.owners, found.shape[1]
    asked = owners * positives.gallery + positives.indices
    listed = (found + np.arange(len(found))[:, None] * positives.gallery).ravel()
    order = np.argsort(listed)
    at = order[np.minimum(np.searchsorted(listed, asked, sorter=order), len(order) - 1)]
    reached = listed[at] == asked
    score = second.ravel()[at]
    greater, equal = np.empty(len(asked), np.int64), np.empty(len(asked), np.int64)
    inside, outside = np.flatnonzero(reached), np.flatnonzero(~reached)
    for pairs in _cut(inside, STRIP // k):
        rivals = second[owners[pairs]]  # (pairs, K)
        greater[pairs] = (rivals > score[pairs, None]).sum(1)
        equal[pairs] = (rivals == score[pairs, None]).sum(1)
    for pairs, strip_RM, row in _strips(asking, answering, found, owners, outside):
        threshold = strip_RM[row, torch.from_numpy(positives.indices[pairs])]
        score[pairs] = threshold.numpy()
        for some in _cut(np.arange(len(pairs)), len(strip_RM)):
            rivals_RM = strip_RM[row[some]]
            greater[pairs[some]] = k + (rivals_RM > threshold[some, None]).sum(1).numpy()
            equal[pairs[some]] = (rivals_RM == threshold[some, None]).sum(1).numpy()
    return Placed(owners, reached, score, greater, equal)


def _strips(
    asking: torch.Tensor, answering: torch.Tensor, found: np.ndarray, owners: np.ndarray, missed: np.ndarray
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield missed pairs with their queries' first-stage scores [R, M], -inf in the shortlist, and their rows in it.

    One product gives a positive's score and its rivals': computed apart, they would differ in their last bits.
    """
    for queries in _cut(np.unique(owners[missed]), max(1, STRIP // len(answering))):
        pairs = missed[(owners[missed] >= queries[0]) & (owners[missed] <= queries[-1])]
        Q_RD = asking[torch.from_numpy(queries).to(asking.device)].to(torch.float32)
        strip_RM = torch.empty(len(queries), len(answering))
        with exact_float32(Q_RD.device):
            for start, block in blocks(answering):
                strip_RM[:, start : start + len(block)] = Q_RD @ block.to(Q_RD.device).T
        strip_RM.scatter_(1, torch.from_numpy(found[queries]), -torch.inf)
        yield pairs, strip_RM, torch.from_numpy(np.searchsorted(queries, owners[pairs]))


def _cut(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    step = max(1, size)
    for start in range(0, len(values), step):
        yield values[start : start + step]
