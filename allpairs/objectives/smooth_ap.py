"""Smooth average precision across modalities.

Shapes: R anchors, C columns, K positives of the anchor with the most.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from allpairs.engine.contract import Anchors, Family, Reduction, Tile
from allpairs.engine.statistics import Highest, RowStatistic, Summed
from allpairs.objectives.base import PositivesByIds
from allpairs.objectives.checks import positive_number

_LARGEST_EXPONENT = 50.0


@dataclass(frozen=True)
class SoftRanks(RowStatistic):
    """The scores of each anchor's positives and, in a second walk, their soft ranks and how fast these change."""

    scores: Highest
    """[R, K]: s_i at the anchor's slots, −inf where it has fewer positives. Each tile knows those it holds."""
    positives_above: Summed
    """[R, K]: Σ_{j∈P, j≠i} G_ij, with G_ij = σ((s_j − s_i)/τ)."""
    negatives_above: Summed
    """[R, K]: the same sum over the negatives j."""
    positives_slope: Summed
    """[R, K]: Σ_{j∈P, j≠i} G_ij(1 − G_ij)/τ; without gradient."""
    negatives_slope: Summed
    """[R, K]: the same sum over the negatives j."""

    def among_positives(self) -> Tensor:
        """Return R(i, P) [R, K]."""
        return 1 + self.positives_above

    def among_all(self) -> Tensor:
        """Return R(i, all) [R, K]."""
        return 1 + self.positives_above + self.negatives_above


class SmoothAP(PositivesByIds[SoftRanks]):
    """Smooth-AP: f(i) = 1 − (1/|P|) Σ_{i∈P} R(i, P)/R(i, all), R(i, Ω) = 1 + Σ_{j∈Ω, j≠i} σ((s_j − s_i)/τ).

    Meant for batches of images [B] and k captions of each [kB], joined by ids. The exponent is held within ±50. An
    anchor without positives has the loss 0. Memory is O(B·K) beside that of the engine, time grows with K.

    Row statistic: the scores of the positives; then, of each, both soft ranks and their slopes.
    Pair weights: from each positive i, ∂AP/∂s_j through both of its ranks; minus their sum for s_i itself.

    A positive may be pushed: of two near each other below a negative, the higher one, whose precision among all counts
    its place among the positives.

    Source: C-Eq. 5 to 8 (COCOS); Brown et al. 2020 (arXiv 2007.12163). C-8 averages over all queries, here over images
    plus over captions; C's unnumbered AP has the sign of D reversed against C-6, which is used.
    """

    family: ClassVar[Family] = "ranking"
    passes = 2
    needs_slots: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.01, reduction: Reduction = "mean", normalize: bool = True) -> None:
        super().__init__(reduction=reduction, normalize=normalize)
        self.temperature = positive_number("temperature", temperature)

    @property
    def constant_factor(self) -> float:
        """1/τ, the steepness of its soft ranks, which the released counter leaves out."""
        return 1 / self.temperature

    def statistic(self, tile: Tile, known: SoftRanks | None) -> SoftRanks:
        """Collect the scores of the positives; knowing them, add up both soft ranks of each."""
        if known is None:
            column_RK, inside_RK = _slots_in(tile)
            scores_RK = tile.scores.gather(1, column_RK).masked_fill(~inside_RK, -torch.inf)
            nothing_RK = torch.zeros_like(scores_RK)
            return SoftRanks(scores_RK, nothing_RK, nothing_RK, nothing_RK, nothing_RK)
        sums: list[list[Tensor]] = [[], [], [], []]
        for higher_RC, slope_RC in self._comparisons(tile, known.scores):
            for values_RC, (of_positives, of_negatives) in ((higher_RC, sums[:2]), (slope_RC, sums[2:])):
                of_positives.append(tile.mask_positives(values_RC, fill=0).sum(dim=1))
                of_negatives.append(tile.mask_negatives(values_RC, fill=0).sum(dim=1))
        return SoftRanks(known.scores, *(torch.stack(parts, dim=1) for parts in sums))

    def losses(self, anchors: Anchors, statistic: SoftRanks) -> Tensor:
        """Return 1 − AP."""
        exists_RK, count_R = _positives(anchors)
        precision_RK = statistic.among_positives() / statistic.among_all() * exists_RK
        average_R = precision_RK.sum(dim=1) / count_R.clamp(min=1)
        return (count_R > 0).to(average_R) - average_R

    def weights(self, tile: Tile, statistic: SoftRanks) -> Tensor:
        """Return what moves the ranks of the positives."""
        exists_RK, count_R = _positives(tile.anchors)
        share_RK = exists_RK.to(tile.scores) / count_R.clamp(min=1)[:, None]
        rank_RK = statistic.among_all()
        of_all_RK = share_RK * statistic.among_positives() / rank_RK**2  # ∂f/∂R(i, all)
        of_positives_RK = of_all_RK - share_RK / rank_RK  # with ∂f/∂R(i, P), since positives are counted in both
        weights_RC = torch.zeros_like(tile.scores)
        for slot, (_, slope_RC) in enumerate(self._comparisons(tile, statistic.scores)):
            weights_RC += of_all_RK[:, slot, None] * tile.mask_negatives(slope_RC, fill=0)
            if tile.is_positive is not None:
                weights_RC += of_positives_RK[:, slot, None] * tile.mask_positives(slope_RC, fill=0)
        pull_RK = of_all_RK * statistic.negatives_slope + of_positives_RK * statistic.positives_slope
        column_RK, inside_RK = _slots_in(tile)
        return weights_RC.scatter_add(1, column_RK, -pull_RK * inside_RK)

    def _comparisons(self, tile: Tile, scores_RK: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield of each slot G_ij and its slope G_ij(1 − G_ij)/τ [R, C], 0 at the positive itself."""
        column_RK, inside_RK = _slots_in(tile)
        for slot in range(scores_RK.shape[1]):
            exponents_RC = (tile.scores - scores_RK[:, slot, None]) / self.temperature
            higher_RC = exponents_RC.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).sigmoid()
            others_RC = torch.ones_like(tile.scores)
            others_RC.scatter_(1, column_RK[:, slot, None], 1 - inside_RK[:, slot, None].to(tile.scores))
            higher_RC = higher_RC * others_RC
            with torch.no_grad():
                moves_RC = exponents_RC.abs() <= _LARGEST_EXPONENT
                slope_RC = higher_RC * (1 - higher_RC) / self.temperature * moves_RC
            yield higher_RC, slope_RC


def _slots_in(tile: Tile) -> tuple[Tensor, Tensor]:
    """Return the place of each slot in this tile [R, K], 0 where it lies elsewhere, and whether it lies here."""
    assert tile.anchors.slots is not None
    column_RK = tile.anchors.slots - tile.first_column
    inside_RK = (tile.anchors.slots >= 0) & (column_RK >= 0) & (column_RK < tile.scores.shape[1])
    if tile.is_positive is None:  # no column of this tile is a positive, whatever its place
        inside_RK = torch.zeros_like(inside_RK)
    else:
        inside_RK = inside_RK & tile.is_positive.gather(1, column_RK * inside_RK)
    return column_RK * inside_RK, inside_RK


def _positives(anchors: Anchors) -> tuple[Tensor, Tensor]:
    """Return which slots hold a positive [R, K] and how many do [R]."""
    assert anchors.slots is not None
    exists_RK = anchors.slots >= 0
    return exists_RK, exists_RK.sum(dim=1)
