"""Vision backbones of the transformers library as image encoders.

Nothing here needs torchvision: pictures are decoded and resized before, normalised inside.
"""

import contextlib
import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from allpairs.errors import UserError
from allpairs.models.hub import network, quietly, self_contained
from allpairs.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from allpairs.models.pooling import GeneralizedPooling, keep_some
from allpairs.models.spec import TransformersSpec


class BackboneEncoder(nn.Module):
    """uint8 images `[b, 3, H, W]` → `[b, dim]`, not normalised: backbone, pooling, one linear layer.

    `spec` becomes the self-contained description of what was built (model type + configuration), so that a saved model
    can be rebuilt without the hub. Raises UserError for a backbone that can't be found, built or used on images.
    """

    def __init__(self, spec: TransformersSpec, dim: int) -> None:
        super().__init__()
        self.pool = spec.pool
        self.freeze = spec.freeze
        self.drop = spec.drop
        self.backbone: Any = network(spec, "model.image", "vision")
        self.spec = dataclasses.replace(spec, **self_contained(self.backbone))
        self.pixels = PixelNormalization(*_pixel_statistics(spec))
        parameters = inspect.signature(self.backbone.forward).parameters
        # Vision transformers learn positions for one size of picture; any other size needs them interpolated.
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        self.embedding = nn.Linear(self._probe(spec.name), dim)
        self.pooling = GeneralizedPooling() if spec.pool == "gpo" else None
        if self.freeze:
            self.backbone.requires_grad_(False).eval()

    def _probe(self, name: str) -> int:
        """Return the size of the pooled vector, and stop training what it does not depend on.

        Heads that the pooling leaves out get no gradient, and data-parallel training would wait for it forever.
        """
        size = getattr(self.backbone.config, "image_size", None) or 64
        height, width = (size, size) if isinstance(size, int) else size
        self.backbone.eval()  # one blank picture must not enter the batch statistics
        try:
            with torch.enable_grad():
                vector = self._pooled(torch.zeros(1, 3, height, width))
                vector.sum().backward()
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"model.image.name: {name!r} does not encode images: {error}") from None
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.backbone.train()
        return vector.shape[-1]

    def _pooled(self, pixels: Tensor) -> Tensor:
        """Return one vector per picture, `[b, C]`; all positions, `[b, N, C]`, for generalised pooling."""
        output = self.backbone(pixel_values=pixels, **self._options)
        if self.pool == "auto" and output.get("pooler_output") is not None:
            return output.pooler_output.flatten(1)  # convolutional backbones give [b, C, 1, 1]
        states = output.last_hidden_state  # [b, C, h, w], or [b, patches, C]
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        if self.pool == "gpo":
            return states
        return states[:, 0] if self.pool == "first" else states.mean(dim=1)

    def train(self, mode: bool = True) -> "BackboneEncoder":
        """Switch to training mode; a frozen backbone keeps its batch statistics and stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 `images` `[b, 3, H, W]` as `[b, dim]`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            pooled = self._pooled(self.pixels(images))
        vectors = self.embedding(pooled)
        if self.pooling is None:
            return vectors
        present_bN = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        if self.training and self.drop:
            present_bN = keep_some(present_bN, self.drop)
        return self.pooling(vectors, present_bN)


def _pixel_statistics(spec: TransformersSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the pixel mean and deviation the backbone was trained with (ImageNet's where nothing says)."""
    from transformers.image_processing_base import ImageProcessingMixin

    settings: dict[str, Any] = {}
    if spec.pretrained:
        with quietly(), contextlib.suppress(OSError):  # weights without a preprocessor file
            settings, _ = ImageProcessingMixin.get_image_processor_dict(spec.name)
    return tuple(settings.get("image_mean", IMAGENET_MEAN)), tuple(settings.get("image_std", IMAGENET_STD))
