"""Precomputed region features as an image encoder (VSE++ on bottom-up attention)."""

from torch import Tensor, nn

from allpairs.models.spec import RegionsSpec


class RegionsEncoder(nn.Module):
    """Features `[b, R, F]` of any number R of regions → `[b, dim]`, not normalised: linear, then max over regions."""

    def __init__(self, spec: RegionsSpec, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(spec.features, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Encode `features` `[b, R, F]` as `[b, dim]`; a ValueError for any other shape or no region at all."""
        if features.ndim != 3 or features.shape[2] != self.embedding.in_features or features.shape[1] == 0:
            expected = f"[b, R, {self.embedding.in_features}] with R ≥ 1"
            raise ValueError(f"region features must be {expected}, not {list(features.shape)}")
        return self.embedding(features.to(self.embedding.weight.dtype)).amax(dim=1)
