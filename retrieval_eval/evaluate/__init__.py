"""`evaluate`: exact retrieval metrics of two sets of embeddings, in both directions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from allpairs.errors import UserError, nearest
from retrieval_eval.inputs import Matrix, pair_where_they_lie, rows
from retrieval_eval.positives import Positives, as_ids
from retrieval_eval.report import Report, report_fields
from retrieval_eval.searched.search import search
from retrieval_eval.sharded import Problem, count

Engine = Literal["exact", "faiss"]
"""What finds the ranks: counting, or a search for the best K of every query (`retrieval_eval.searched`)."""
ENGINES: tuple[Engine, ...] = get_args(Engine)


def evaluate(
    queries: Matrix,
    gallery: Matrix,
    query_ids: Any = None,
    gallery_ids: Any = None,
    *,
    positives: Sequence[Sequence[int]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    query_name: str = "i",
    gallery_name: str = "t",
    both_directions: bool = True,
    cosine: bool = False,
    device: str | None = None,
    tile: int | None = None,
    shards: int | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    engine: str = "exact",
) -> Report:
    """Rank the gallery [M, D] for each query [N, D] by inner product, and the queries for each gallery item, exactly.

    `cosine` normalises the rows first (a zero row stays zero), as the objectives of `allpairs` do by default; without
    it a gallery item that is longer than others ranks higher for every query that it points towards.

    A pair is positive where ``query_ids[q] == gallery_ids[g]``, or where g is in ``positives[q]``; positions mean
    nothing. rank(q) = 1 + #{gallery items that score above its best positive}, with ties as in `retrieval_eval.ties`.
    Scores are float32 without TF32 on the device of `queries` or on `device`. ``both_directions=False`` leaves the
    second direction out (and RSUM with it), for galleries with items that belong to no query. RSUM and the average
    recall need 1, 5 and 10 in `ks`. `tile` is the side of the score tiles, by default what suits the device.

    Both sides may be memory-mapped files larger than memory; they are read block by block. `shards` splits the gallery
    over that many Ray actors (the cluster of RAY_ADDRESS, else this machine), with bit-identical results on machines of
    one kind. `state` names a folder in which finished work is kept: a run that was killed goes on from there.
    `progress` is told how many units of work are done, and of how many.

    `engine` ``faiss`` searches the gallery instead, on GPUs where FAISS can, or with `shards` in slices that Ray actors
    hold (`retrieval_eval.searched`); `device` and `tile` then are those of the exact count that it is compared with.

    Raises UserError, with the rows and ids, for non-finite, empty or unequal inputs, for queries without positives, and
    for ids that are all equal.
    """
    accepted_ks = checked_ks(ks)
    if check_engine(engine) == "faiss" and state is not None:
        raise UserError("state keeps the finished work of a count; accepted: engine='exact', or no state")
    if query_name == gallery_name:
        raise UserError(f"query_name and gallery_name are both {query_name!r}: the directions need different names")
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
        raise UserError(f"tile={tile!r}; accepted: the side of a tile, a whole number from 1")
    query_ids = None if query_ids is None else as_ids(query_ids, "query_ids")
    gallery_ids = None if gallery_ids is None else as_ids(gallery_ids, "gallery_ids")
    Q, G = pair_where_they_lie(queries, gallery, query_ids, gallery_ids, cosine=cosine)
    where = _usable(device) if device is not None else Q.device
    pairs = _pairs(len(Q), len(G), query_ids, gallery_ids, positives)
    forward, backward = f"{query_name}2{gallery_name}", f"{gallery_name}2{query_name}"
    sets = {forward: pairs, backward: pairs.transposed()} if both_directions else {forward: pairs}
    for direction, ids in zip(sets, (query_ids, gallery_ids), strict=False):
        refuse_orphans(sets[direction], direction, ids)
    if positives is None and min(len(Q), len(G)) > 1 and len(pairs.indices) == len(Q) * len(G):
        raise UserError(
            f"all ids are {query_ids[0]}, so every gallery item is a positive of every query and nothing is to rank"
            "; accepted: ids that tell the instances apart, such as the image of each caption"
        )

    if engine == "faiss":
        found = search(
            Q, G, sets, accepted_ks, cosine=cosine, device=where, tile=tile, shards=shards, progress=progress
        )
        return Report(**found, cosine=cosine)
    problem = Problem(queries, gallery, pairs, both_directions, where, tile, cosine)
    counts = dict(zip(sets, count(problem, shards=shards, state=state, progress=progress), strict=True))
    del problem  # its layout is as large as the counts
    return Report(**report_fields(counts, sets, accepted_ks), cosine=cosine)


def checked_ks(ks: Any) -> tuple[int, ...]:
    """Return the k of the recalls, ascending; UserError for anything but positive integers."""
    try:
        given = tuple(ks)
    except TypeError:
        given = ()
    if not given or any(isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1 for k in given):
        raise UserError(f"ks must be positive integers, as (1, 5, 10), got {ks!r}")
    return tuple(sorted({int(k) for k in given}))


def check_engine(engine: str) -> str:
    """Return `engine` if it is one of `ENGINES`; UserError with the nearest otherwise."""
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}{nearest(engine, ENGINES)} (accepted: {', '.join(ENGINES)})")
    return engine


def _usable(device: Any) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        accepted = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"device={device!r} cannot be used here ({reason}); accepted: {accepted}") from None
    return found


def _pairs(queries: int, gallery: int, query_ids: Any, gallery_ids: Any, positives: Any) -> Positives:
    if positives is not None:
        if not hasattr(positives, "__len__"):
            raise UserError(f"positives must be one list of gallery indices per query, got {positives!r}"[:200])
        if len(positives) != queries:
            raise UserError(f"positives has {len(positives)} lists for {queries} queries: one list per query is needed")
        return Positives.from_lists(positives, gallery)
    if query_ids is None or gallery_ids is None:
        raise UserError("nothing says which pairs are positive: give query_ids and gallery_ids, or positives")
    return Positives.from_ids(query_ids, gallery_ids)


def refuse_orphans(positives: Positives, direction: str, ids: Any) -> None:
    """Raise UserError if a query has no positive."""
    orphans = np.flatnonzero(positives.counts == 0)
    if len(orphans):
        raise UserError(
            f"{len(orphans)} of {len(positives)} {direction} queries have no positive: {rows(orphans, ids)}"
            "; accepted: at least one positive each, or one direction alone (both_directions=False, --one-way)"
        )
