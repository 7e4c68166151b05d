"""Precomputed region features as an image encoder: VSE++ and VSE∞ on bottom-up attention.

Shape legend: b images, R regions, F features, D embedding.
"""

import torch
from torch import Tensor, nn

from allpairs.models.pooling import GeneralizedPooling, keep_some
from allpairs.models.spec import RegionsSpec


class RegionsEncoder(nn.Module):
    """Features `[b, R, F]` of any number R of regions → `[b, dim]`, not normalised: embed each region, then pool.

    VSE++ (Faghri et al. 2018): linear, then the maximum. VSE∞ (Chen et al. 2021): linear plus a perceptron
    F → dim/2 → dim with batch normalisation, then generalised pooling, with a fifth of the regions dropped in training.
    """

    def __init__(self, spec: RegionsSpec, dim: int) -> None:
        super().__init__()
        self.drop = spec.drop
        self.embedding = nn.Linear(spec.features, dim)
        self.mlp = RegionPerceptron(spec.features, dim) if spec.mlp else None
        self.pooling = GeneralizedPooling() if spec.pool == "gpo" else None

    def forward(self, features: Tensor) -> Tensor:
        """Encode `features` `[b, R, F]` as `[b, dim]`; a ValueError for any other shape or no region at all."""
        features = checked(features, self.embedding)
        present_bR = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if self.training and self.drop:
            present_bR = keep_some(present_bR, self.drop)
        vectors_bRD = self.embedding(features)
        if self.mlp is not None:
            vectors_bRD = vectors_bRD + self.mlp(features)
        if self.pooling is not None:
            return self.pooling(vectors_bRD, present_bR)
        return vectors_bRD.masked_fill(~present_bR[..., None], -torch.inf).amax(dim=1)


class RegionPerceptron(nn.Module):
    """Linear, batch normalisation, ReLU, linear, over every region alike: `[b, R, F]` → `[b, R, dim]`."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        hidden = max(dim // 2, 1)
        self.hidden = nn.Linear(features, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.output = nn.Linear(hidden, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the perceptron to `features` `[b, R, F]`."""
        hidden = self.norm(self.hidden(features).flatten(0, 1)).view(*features.shape[:2], -1)
        return self.output(torch.relu(hidden))


def checked(features: Tensor, embedding: nn.Linear) -> Tensor:
    """Return `features` in the embedding's precision; a ValueError unless they are `[b, R, F]` with R ≥ 1."""
    if features.ndim != 3 or features.shape[2] != embedding.in_features or features.shape[1] == 0:
        expected = f"[b, R, {embedding.in_features}] with R ≥ 1"
        raise ValueError(f"region features must be {expected}, not {list(features.shape)}")
    return features.to(embedding.weight.dtype)
