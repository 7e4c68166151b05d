"""Regions that reason about each other: VSRN (Li et al. 2019), without its caption decoder.

Shape legend: b images, R regions, F features, D embedding.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from allpairs.models.regions import checked
from allpairs.models.spec import VsrnSpec


class VsrnEncoder(nn.Module):
    """Features `[b, R, F]` in the order of their regions → `[b, dim]`, not normalised.

    A linear layer, residual graph convolutions over all pairs of regions, unit length, and a GRU that reads the regions
    one by one: its last state is the picture. Source: VSRN, sections 3.1 and 3.2.
    """

    def __init__(self, spec: VsrnSpec, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(spec.features, dim)
        self.graph = nn.Sequential(*(GraphConvolution(dim) for _ in range(spec.layers)))
        self.reading = nn.GRU(dim, dim, batch_first=True)
        self.final_norm = nn.BatchNorm1d(dim) if spec.final_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """Encode `features` `[b, R, F]` as `[b, dim]`; a ValueError for any other shape or no region at all."""
        vectors_bRD = self.graph(self.embedding(checked(features, self.embedding)))
        _, last_1bD = self.reading(F.normalize(vectors_bRD, dim=2))
        return last_1bD[0] if self.final_norm is None else self.final_norm(last_1bD[0])


class GraphConvolution(nn.Module):
    """v + BN(W(A·g(v))) with affinities A = θ(v)φ(v)ᵀ/R between all regions (VSRN, equations 2 and 3).

    The normalisation starts at zero, so that the layer is at first the identity.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.value, self.theta, self.phi, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.BatchNorm1d(dim)
        nn.init.zeros_(self.norm.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return `vectors` `[b, R, D]` after one exchange."""
        affinity_bRR = self.theta(vectors) @ self.phi(vectors).transpose(1, 2) / vectors.shape[1]
        message_bRD = self.output(affinity_bRR @ self.value(vectors))
        return vectors + self.norm(message_bRD.flatten(0, 1)).view_as(vectors)
