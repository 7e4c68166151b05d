"""Triplet diagrams: the weights an anchor gives its positive and one negative, over the plane of both similarities.

The relative terms of GOAL's pairs with ms are `RELATION`, as in G Fig. 3.

Shapes: P grid points per axis, G = P·P points of the plane, each an anchor of its own with 2 columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from allpairs.analysis.variants import Variant, all_variants
from allpairs.objectives import weights_of_triplets

LANDMARKS = {
    "solved (0.8, 0.2)": (0.8, 0.2),
    "wrong (0.2, 0.8)": (0.2, 0.8),
    "all alike (0.9, 0.9)": (0.9, 0.9),
    "all unlike (0.1, 0.1)": (0.1, 0.1),
}
"""Triplets (s_pos, s_neg) that a table shows: far corners and the two ends of the diagonal."""


@dataclass(frozen=True)
class Diagram:
    """One objective's weights over the plane."""

    label: str
    pull: Tensor
    """[P, P]: −∂f/∂s_pos (T·P₊ of GOAL), by s_neg (rows) and s_pos (columns)."""
    push: Tensor
    """[P, P]: ∂f/∂s_neg (T·P₋)."""

    @property
    def magnitude(self) -> Tensor:
        """Return the length of the gradient in the plane [P, P]."""
        return torch.hypot(self.pull, self.push)


def axis(points: int) -> Tensor:
    """Return P similarities from −1 to 1, all a cosine can be."""
    return torch.linspace(-1, 1, points, dtype=torch.float64)


def diagram(variant: Variant, points: int) -> Diagram:
    """Return the weights of `variant` where an anchor has one positive and one negative.

    Source: G Fig. 2 and 3 (GOAL); the diagram is that of Xuan et al. 2020.

    Raises:
        UserError: an impossible objective.
    """
    similarity_P = axis(points)
    negative_PP, positive_PP = torch.meshgrid(similarity_P, similarity_P, indexing="ij")
    pull_G, push_G = weights_of_triplets(variant.make().eval(), positive_PP.flatten(), negative_PP.flatten())
    return Diagram(variant.label, pull_G.view(points, points), push_G.view(points, points))


def triplet_weights(points: int) -> dict[str, Tensor]:
    """Return T [P, P] of G Fig. 2, by its name in the paper."""
    return {name: diagram(Variant("goal", {"triplet": name}), points).push for name in ("con", "nca", "cir")}


def pair_weights(points: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return P₊ over s_pos and P₋ over s_neg [P] of G Fig. 3, by name; the triplet weight is 1 everywhere."""
    similarity_P = axis(points)
    curves = {}
    for pair in ("con", "lin", "sig", "lin_ms", "sig_ms"):
        objective = Variant("goal", {"pair": pair, "margin": None}).make()
        curves[pair] = weights_of_triplets(objective, similarity_P, similarity_P)
    return curves


def all_diagrams(points: int) -> list[Diagram]:
    """Return the diagram of every objective with its defaults, GOAL as its 15."""
    return [diagram(variant, points) for variant in all_variants()]
