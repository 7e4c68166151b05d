"""The dual encoder: an image side and a caption side that share one embedding space."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allpairs.models.cnn import CnnEncoder
from allpairs.models.regions import RegionsEncoder
from allpairs.models.spec import CnnSpec, DualSpec, ImageSpec, RegionsSpec
from allpairs.models.text import GruEncoder


def _unit(vectors: Tensor) -> Tensor:
    # Under bf16 autocast the encoders give 8 bits of mantissa; a norm taken there would leave lengths off by 0.4 %.
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


class DualEncoder(nn.Module):
    """One vector of unit length per image and per caption, so that their dot product is their cosine similarity."""

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image = image
        self.text = text

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit vectors `[b, D]`, float32 at least, of uint8 images `[b, 3, H, W]` or regions `[b, R, F]`."""
        return _unit(self.image(images))

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors `[b, D]`, float32 at least, of token ids int64 `[b, L]` with lengths int64 `[b]`."""
        return _unit(self.text(tokens, lengths))

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of both sides, each `[b, D]` (one call, as data-parallel wrappers need)."""
        return self.encode_images(images), self.encode_texts(tokens, lengths)


def build(spec: DualSpec, vocabulary_size: int) -> DualEncoder:
    """Build the model that `spec` describes for a vocabulary of that many tokens, initialised from torch's global seed.

    A UserError says which backbone could not be loaded, and why.
    """
    return DualEncoder(_image_encoder(spec.image, spec.dim), GruEncoder(spec.text, spec.dim, vocabulary_size))


def _image_encoder(spec: ImageSpec, dim: int) -> nn.Module:
    if isinstance(spec, CnnSpec):
        return CnnEncoder(spec, dim)
    if isinstance(spec, RegionsSpec):
        return RegionsEncoder(spec, dim)
    from allpairs.models.backbone import BackboneEncoder

    return BackboneEncoder(spec, dim)
