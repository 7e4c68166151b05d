"""What every pair objective is: a module that is called with a batch of matched pairs.

Shapes: b pairs on this process, B pairs in all, D embedding, R anchors, C columns they look at.
"""

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allpairs.engine import dense
from allpairs.engine.anchors import Anchors
from allpairs.engine.pairs import match_ids, match_margins, prepare
from allpairs.errors import UserError
from allpairs.objectives.checks import choice, flag

Reduction = Literal["mean", "sum"]
BACKENDS = ("auto", "dense")

StatisticT = TypeVar("StatisticT")


class PairObjective(nn.Module, ABC, Generic[StatisticT]):
    """An objective over matched pairs, symmetric in both directions: L = Σ_i f_row(i) + Σ_i f_col(i).

    A subclass says what an anchor must know about its row (`statistic`), the loss f(i) this gives (`losses`) and the
    weight ∂f(i)/∂S_ij of each pair (`weights`); the engine does the rest. See `allpairs.engine.anchors`.
    """

    takes_margins: ClassVar[bool] = False
    """Whether the objective has a margin, which `margins=` at the call may replace by one per pair (U-Eq. 26)."""

    def __init__(self, *, reduction: Reduction, normalize: bool) -> None:
        super().__init__()
        self.reduction = choice("reduction", reduction, get_args(Reduction))
        self.normalize = flag("normalize", normalize)

    @abstractmethod
    def statistic(self, anchors: Anchors) -> StatisticT:
        """Return what each anchor must know about its row; differentiable."""

    @abstractmethod
    def losses(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return f(i) [R]; differentiable, through the statistic too."""

    @abstractmethod
    def weights(self, anchors: Anchors, statistic: StatisticT) -> Tensor:
        """Return ∂f(i)/∂S_ij [R, C] in closed form."""

    def forward(
        self,
        queries: Tensor,
        candidates: Tensor,
        *,
        query_ids: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        margins: Tensor | None = None,
        group: "dist.ProcessGroup | None" = None,
        backend: str = "auto",
    ) -> Tensor:
        """Return the loss (a scalar) of matched pairs: row i of `queries` [b, D] belongs to row i of `candidates`.

        Embeddings of any floating type are compared in float32 (float64 stays), outside autocast, and scaled to length
        1 first unless the objective was made with `normalize=False`.

        Args:
            queries: [b, D].
            candidates: [b, D].
            query_ids: [b] integers naming the instance of each pair, such as the image; pairs of one instance are not
                each other's negatives. Given alone it stands for `candidate_ids` too.
            candidate_ids: [b], the same ids from the other side.
            margins: [b], one margin per pair in place of the objective's (U-Eq. 26). No gradient flows to them.
            group: the process group whose ranks share the batch. Every rank calls with its own rows (any number, 0
                too), all pairs of all ranks are compared, and the gradient after DistributedDataParallel's averaging
                over the same group is exactly that of one process on all pairs. The value is then this rank's
                share times N: log `allpairs.engine.global_value`. **None means this process alone**, in a distributed
                job too: negatives of other ranks are then not seen.
            backend: "dense" holds the full score matrix; "auto" chooses.

        Raises:
            UserError: arguments that are not matched pairs, or not those of this objective.
        """
        choice("backend", backend, BACKENDS)
        self._check_margins(margins)
        if group is None and torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():
            ranks = dist.get_world_size()
            if ranks > 1:
                warnings.warn(
                    f"objective called without group= in a job of {ranks} ranks: negatives of other ranks are not seen",
                    stacklevel=2,
                )
        with torch.autocast(queries.device.type, enabled=False):
            local = prepare(
                queries,
                candidates,
                query_ids=query_ids,
                candidate_ids=candidate_ids,
                margins=margins,
                normalize=self.normalize,
            )
            return dense.loss(self, local, group)

    @torch.no_grad()
    def pair_weights(
        self,
        queries: Tensor,
        candidates: Tensor,
        *,
        query_ids: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        margins: Tensor | None = None,
    ) -> Tensor:
        """Return W = ∂L/∂S [B, B], the weight the loss gives each pair, from its closed form and on this process.

        ∂L/∂q_i = Σ_j W_ij c_j and ∂L/∂c_j = Σ_i W_ij q_i for the normalised q and c. Arguments as at the call.
        """
        self._check_margins(margins)
        with torch.autocast(queries.device.type, enabled=False):
            local = prepare(
                queries,
                candidates,
                query_ids=query_ids,
                candidate_ids=candidate_ids,
                margins=margins,
                normalize=self.normalize,
            )
            scores_BB = local.queries @ local.candidates.T
            return dense.weights_of_scores(self, scores_BB, local.ids, local.margins)

    def _check_margins(self, margins: Tensor | None) -> None:
        if margins is not None and not self.takes_margins:
            raise UserError(f"margins: {type(self).__name__} has no margin that one per pair could replace")


def from_scores(
    objective: PairObjective[Any],
    scores: Tensor,
    *,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    margins: Tensor | None = None,
) -> Tensor:
    """Return the same loss on a given score matrix [B, B], for scorers that have no embeddings; differentiable.

    `scores[i, j]` is the score of query i and candidate j; ids and margins are [B] as at the objective's call. Half
    precision is raised to float32. The scores are those of all pairs: nothing is exchanged between ranks.

    Raises:
        UserError: scores that are no square matrix, or ids and margins that do not fit.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0 or not scores.is_floating_point():
        raise UserError(
            f"scores: a floating-point matrix [B, B] of at least one pair is accepted, not {list(scores.shape)} "
            f"of {scores.dtype}"
        )
    objective._check_margins(margins)
    ids = match_ids(query_ids, candidate_ids, len(scores), scores.device)
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return dense.loss_of_scores(objective, scores, ids, match_margins(margins, scores))
