"""What every pair objective is: a module that is called with a batch of queries and candidates.

Shapes: bq queries and bc candidates on this process (b where row i must match row i), Bq and Bc in all, D embedding,
R anchors, C columns they look at.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from allpairs.engine import dense
from allpairs.engine.backend import BACKENDS, compute_loss, keeps_half
from allpairs.engine.batch import (
    LocalBatch,
    as_floats,
    check_embeddings,
    check_tensor,
    match_ids,
    match_integers,
    match_margins,
    prepare,
)
from allpairs.engine.contract import AnchorObjective, Anchors, Family, Reduction, StatisticT, Tile
from allpairs.engine.exchange import warn_alone
from allpairs.engine.global_batch import GlobalBatch, own_scores
from allpairs.engine.products import as_given
from allpairs.errors import UserError
from allpairs.objectives.checks import choice, flag

Direction = Literal["both", "rows", "columns"]


class PairObjective(AnchorObjective[StatisticT]):
    """An objective as its users call it. What it must say of itself: `allpairs.engine.contract.AnchorObjective`.

    Inherit from `OwnPair` or `PositivesByIds`.
    """

    def __init__(self, *, reduction: Reduction, normalize: bool) -> None:
        super().__init__()
        self.reduction = choice("reduction", reduction, get_args(Reduction))
        self.normalize = flag("normalize", normalize)

    def forward(
        self,
        queries: Tensor,
        candidates: Tensor,
        *,
        query_ids: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        margins: Tensor | None = None,
        group: "dist.ProcessGroup | None" = None,
        backend: str = "auto",
        tile: int | None = None,
    ) -> Tensor:
        """Return the loss (a scalar) of queries [bq, D] and candidates [bc, D].

        Embeddings of float16, bfloat16 and float32 are compared in float32, float64 in float64, whatever autocast and
        the precision of products outside are; of half precision on a GPU the products are taken as they come, with sums
        in float32. They are scaled to length 1 first unless the objective was made with `normalize=False`.

        Objectives with one positive per anchor want row i to match row i; ids then name the instance of each pair, such
        as the image, and pairs of one instance are not each other's negatives. For `circle`, `binomial_deviance`,
        `lifted`, `multi_similarity`, `siglip` and `smooth_ap` all items of the anchor's id are its positives, and the
        numbers of queries and candidates may differ; without ids row i matches row i.

        Args:
            queries: [bq, D].
            candidates: [bc, D].
            query_ids: [bq] integers. Given alone it stands for `candidate_ids` too.
            candidate_ids: [bc], the same ids from the other side.
            text_ids: [bc] integers, equal for candidates that say the same: the hash of a caption, say. A candidate
                whose text is that of one of the query's positives is no negative of it, whatever the ids; nor is it a
                positive unless by its id. With one positive per anchor a pair is so masked where either of two ids is
                equal. Without them equal texts of different ids are negatives.
            margins: [b], one margin per pair in place of the objective's (U-Eq. 26). No gradient flows to them.
            group: the process group whose ranks share the batch. Every rank calls with its own rows (any number, 0
                too), all items of all ranks are compared, and the gradient after DistributedDataParallel's averaging
                over the same group is exactly that of one process on all of them. Ids are global: equal ids on two
                ranks are one instance. The value is then this rank's part of the sum times N: log
                `allpairs.engine.global_value`. **None means this process alone**, in a distributed job too: negatives
                of other ranks are then not seen.
            backend: "dense" holds the full score matrix, and alone can be differentiated twice or by torch.func;
                "tiled" needs memory for one tile of it; "triton" is tiled with fused kernels, on GPUs; "auto" chooses
                by size, type and device.
            tile: rows and columns of a tile, for "tiled" and "triton"; None chooses.

        Embeddings that are not finite give NaN on every rank of the group, whatever the objective looks at.

        Raises:
            UserError: arguments that are not a batch, or not those of this objective. With a group, on every rank:
                what any of them refuses, and what they disagree about (objective, arguments, learned scale, backend).
        """
        given = {"query_ids": query_ids, "candidate_ids": candidate_ids, "text_ids": text_ids, "margins": margins}
        if torch.compiler.is_compiling():
            return _outside_graphs(self, queries, candidates, **given, group=group, backend=backend, tile=tile)
        return self._loss(queries, candidates, **given, group=group, backend=backend, tile=tile)

    def _loss(
        self,
        queries: Tensor,
        candidates: Tensor,
        *,
        query_ids: Tensor | None,
        candidate_ids: Tensor | None,
        text_ids: Tensor | None,
        margins: Tensor | None,
        group: "dist.ProcessGroup | None",
        backend: str,
        tile: int | None,
    ) -> Tensor:
        if group is None and torch.is_grad_enabled():
            warn_alone("objective", "negatives of other ranks are not seen", stacklevel=3)

        def prepared() -> LocalBatch:
            choice("backend", backend, BACKENDS)
            self._check_margins(margins)
            check_embeddings(queries, candidates)
            return prepare(
                queries,
                candidates,
                query_ids=query_ids,
                candidate_ids=candidate_ids,
                text_ids=text_ids,
                margins=margins,
                normalize=self.normalize,
                own_positive=self.own_positive,
                keep_half=keeps_half(backend, queries, candidates),
            )

        with as_given(queries):
            return compute_loss(self, prepared, group, backend, tile)

    @torch.no_grad()
    def pair_weights(
        self,
        queries: Tensor,
        candidates: Tensor,
        *,
        query_ids: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        margins: Tensor | None = None,
        direction: Direction = "both",
    ) -> Tensor:
        """Return W = ∂L/∂S [Bq, Bc], the weight the loss gives each pair, from its closed form and on this process.

        ∂L/∂q_i = Σ_j W_ij c_j and ∂L/∂c_j = Σ_i W_ij q_i for the normalised q and c. Arguments as at the call;
        `direction` narrows it to what the queries ask for as anchors (rows), or the candidates (columns).
        """
        choice("direction", direction, get_args(Direction))
        self._check_margins(margins)
        with as_given(queries):
            batch = prepare(
                queries,
                candidates,
                query_ids=query_ids,
                candidate_ids=candidate_ids,
                text_ids=text_ids,
                margins=margins,
                normalize=self.normalize,
                own_positive=self.own_positive,
            )
            for name, count in (("queries", len(batch.queries)), ("candidates", len(batch.candidates))):
                if not count:
                    raise UserError(f"{name}: at least one row is needed, none was given")
            scores = self.scored(batch.queries @ batch.candidates.T)
            positive = self.scored(own_scores(batch.queries, batch.candidates)) if self.own_positive else None
            whole = GlobalBatch.of(
                self,
                batch.ids,
                positive=positive,
                margins=batch.margins,
                texts=batch.texts,
                counts=scores.shape,
                device=scores.device,
            )
            return self.score_scale() * dense.weights_of_scores(self, scores, whole).of(direction)

    def _check_margins(self, margins: Tensor | None) -> None:
        if margins is not None and not self.takes_margins:
            raise UserError(f"margins: {type(self).__name__} has no margin that one per pair could replace")


class OwnPair(PairObjective[StatisticT]):
    """An objective whose anchors have one positive, their own pair: every negative is pushed, the pair is pulled."""

    own_positive: ClassVar[bool] = True
    family: ClassVar[Family] = "triplet"

    @abstractmethod
    def push(self, tile: Tile, statistic: StatisticT) -> Tensor:
        """Return ∂f(i)/∂S_ij [R, C] of the negatives, 0 for all others."""

    @abstractmethod
    def pull(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return −∂f(i)/∂d_i [R]."""

    def weights(self, tile: Tile, statistic: StatisticT) -> Tensor:
        """Return what pushes the negatives and, with a minus, what pulls the own pair."""
        push_RC = self.push(tile, statistic)
        if tile.is_positive is None:
            return push_RC
        return torch.where(tile.is_positive, -self.pull(tile.anchors, statistic)[:, None], push_RC)


class PositivesByIds(PairObjective[StatisticT]):
    """An objective whose anchors have a set of positives: all items of the other side that share their id."""

    own_positive: ClassVar[bool] = False
    family: ClassVar[Family] = "sets"


def from_scores(
    objective: PairObjective[Any],
    scores: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    margins: Tensor | None = None,
) -> Tensor:
    """Return the same loss on a given score matrix [Bq, Bc], for scorers that have no embeddings; differentiable.

    `scores[i, j]` is the score of query i and candidate j; ids and margins are as at the objective's call. Half
    precision is raised to float32. The scores are those of all pairs: nothing is exchanged between ranks. A score that
    is NaN gives NaN, whatever the objective looks at.

    Raises:
        UserError: scores that are no matrix, or ids and margins that do not fit.
    """
    with as_given(scores):
        scaled, whole = _of_scores(
            objective,
            scores,
            query_ids=query_ids,
            candidate_ids=candidate_ids,
            text_ids=text_ids,
            margins=margins,
        )
        # Mining compares, and nothing is above or below NaN: without this a broken score could be passed over.
        nothing_or_nan = torch.where(scores.detach().isnan().any(), torch.nan, scaled.new_zeros(()))
        return dense.loss_of_scores(objective, scaled, whole) + nothing_or_nan


@torch.no_grad()
def weights_from_scores(
    objective: PairObjective[Any],
    scores: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    margins: Tensor | None = None,
    direction: Direction = "both",
) -> Tensor:
    """Return W = ∂L/∂S [Bq, Bc] of a given score matrix, from its closed form.

    Arguments and errors as of `from_scores`, `direction` as of `PairObjective.pair_weights`.
    """
    choice("direction", direction, get_args(Direction))
    with as_given(scores):
        scaled, whole = _of_scores(
            objective,
            scores,
            query_ids=query_ids,
            candidate_ids=candidate_ids,
            text_ids=text_ids,
            margins=margins,
        )
        return objective.score_scale() * dense.weights_of_scores(objective, scaled, whole).of(direction)


@torch.no_grad()
def shares_from_scores(
    objective: PairObjective[Any],
    scores: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return p_ij of the queries as anchors [Bq, Bc] and of the candidates [Bc, Bq], of the family "softmax".

    Arguments and errors as of `from_scores`. An anchor's shares add up to 1 with that of its positive.
    """
    scaled, whole = _of_scores(
        objective, scores, query_ids=query_ids, candidate_ids=candidate_ids, text_ids=text_ids, margins=None
    )
    rows, columns = (
        objective.shares(tile, objective.statistic_of_row(tile)) for tile in dense.both_tiles(objective, scaled, whole)
    )
    return rows, columns


@torch.no_grad()
def weights_of_triplets(objective: PairObjective[Any], positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return −∂f/∂s_pos and ∂f/∂s_neg [G] of anchors with one positive and one negative each, at these similarities."""
    scores_G2 = objective.scored(torch.stack([positive, negative], dim=1))
    is_positive_G2 = torch.tensor([True, False], device=positive.device).expand_as(scores_G2)
    slots_G1 = torch.zeros(len(positive), 1, dtype=torch.int64, device=positive.device)
    anchors = Anchors(positive=scores_G2[:, 0] if objective.own_positive else None, slots=slots_G1)
    tile = Tile(anchors, scores_G2, is_positive=is_positive_G2, is_negative=~is_positive_G2)
    weights_G2 = objective.weights(tile, objective.statistic_of_triplet(tile)) * objective.score_scale()
    return 0 - weights_G2[:, 0], weights_G2[:, 1]


@_disable_dynamo
def _outside_graphs(objective: PairObjective[Any], *embeddings: Tensor, **given: Any) -> Tensor:
    """Return the loss in torch.compile's stead: one region that it leaves alone, with whatever is called in it.

    (`torch.compiler.disable` would import the compiler, a second's work, with this module; this does at its call.)
    """
    return objective._loss(*embeddings, **given)


def _of_scores(
    objective: PairObjective[Any],
    scores: Tensor,
    *,
    query_ids: Tensor | None,
    candidate_ids: Tensor | None,
    text_ids: Tensor | None,
    margins: Tensor | None,
) -> tuple[Tensor, GlobalBatch]:
    """Check a score matrix and return it as the objective sees it, with what is known of the batch."""
    check_tensor("scores", scores, "one score per pair, [Bq, Bc],")
    if scores.ndim != 2 or scores.numel() == 0 or not scores.is_floating_point():
        raise UserError(
            f"scores: a floating-point matrix [B, B] of at least one pair is accepted, not {list(scores.shape)} "
            f"of {scores.dtype}{as_floats('scores', scores)}"
        )
    objective._check_margins(margins)
    counts = scores.shape[0], scores.shape[1]
    ids = match_ids(query_ids, candidate_ids, counts, scores.device, own_positive=objective.own_positive)
    scaled = objective.scored(scores.to(torch.promote_types(scores.dtype, torch.float32)))
    texts = match_integers("text_ids", text_ids, counts[1], scores.device)
    positive = scaled.detach().diagonal() if objective.own_positive else None
    return scaled, GlobalBatch.of(
        objective,
        ids,
        positive=positive,
        margins=match_margins(margins, scores),
        texts=texts,
        counts=counts,
        device=scores.device,
    )
