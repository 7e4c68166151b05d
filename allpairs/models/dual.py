"""The dual encoder: an image side and a caption side that share one embedding space."""

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from allpairs.engine.batch import unit_rows
from allpairs.models.spec import DualSpec, ImageSpec, ModelSpec, SavedSpec, TextSpec

if TYPE_CHECKING:
    from allpairs.models.preprocessing import ImagePreprocessing


def unit(vectors: Tensor) -> Tensor:
    """Return `vectors` `[b, D]` at unit length, in float32 at least; right for any finite length.

    Under bf16 autocast the encoders give 8 bits of mantissa; a norm taken there would leave lengths off by 0.4 %.
    """
    return unit_rows(vectors.to(torch.promote_types(vectors.dtype, torch.float32)))


class DualEncoder(nn.Module):
    """One vector of unit length per image and per caption, so that their dot product is their cosine similarity.

    Attributes:
        dim: D, the length of the vectors.
        preprocessing: the image preprocessing a whole pretrained model brings; None: `data.image_size` decides.
        learned: the scale (and bias) it brings for an objective that learns them; empty if none.
    """

    dim: int
    preprocessing: "ImagePreprocessing | None" = None

    def __init__(self, image: nn.Module, text: nn.Module, dim: int) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.dim = dim
        self.learned: dict[str, float] = {}

    def described(self, spec: ModelSpec) -> SavedSpec:
        """Return `spec` made self-contained: a hub id says nothing offline, its network describes itself."""
        assert isinstance(spec, DualSpec), "towers are described by towers"
        image: ImageSpec = getattr(self.image, "spec", spec.image)
        text: TextSpec = getattr(self.text, "spec", spec.text)
        return dataclasses.replace(spec, image=image, text=text, init_from=None)

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit vectors `[b, D]`, float32 at least, of uint8 images `[b, 3, H, W]` or regions `[b, R, F]`."""
        return unit(self.image(images))

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors `[b, D]`, float32 at least, of token ids int64 `[b, L]` with lengths int64 `[b]`."""
        return unit(self.text(tokens, lengths))

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of both sides, each `[b, D]` (one call, as data-parallel wrappers need)."""
        return self.encode_images(images), self.encode_texts(tokens, lengths)
