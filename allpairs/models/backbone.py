"""Vision backbones of the transformers library as image encoders.

Nothing here needs torchvision: pictures are decoded and resized before, normalised inside.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allpairs.errors import UserError, nearest
from allpairs.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from allpairs.models.spec import TransformersSpec

# Of a saved configuration, what says where it came from rather than what the network is.
_PROVENANCE = ("model_type", "transformers_version", "architectures", "dtype", "_name_or_path")


class BackboneEncoder(nn.Module):
    """uint8 images `[b, 3, H, W]` → `[b, dim]`, not normalised: backbone, pooling, one linear layer.

    `spec` becomes the self-contained description of what was built (model type + configuration), so that a saved model
    can be rebuilt without the hub. Raises UserError for a backbone that can't be found, built or used on images.
    """

    def __init__(self, spec: TransformersSpec, dim: int) -> None:
        super().__init__()
        self.pool = spec.pool
        self.freeze = spec.freeze
        self.backbone, mean, std = _load(spec)
        settings = {k: v for k, v in self.backbone.config.to_diff_dict().items() if k not in _PROVENANCE}
        self.spec = TransformersSpec(
            name=self.backbone.config.model_type,
            config=settings,
            pretrained=False,
            freeze=spec.freeze,
            pool=spec.pool,
        )
        self.pixels = PixelNormalization(mean, std)
        parameters = inspect.signature(self.backbone.forward).parameters
        # Vision transformers learn positions for one size of picture; any other size needs them interpolated.
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        self.embedding = nn.Linear(self._probe(spec.name), dim)
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
        return vector.shape[1]

    def _pooled(self, pixels: Tensor) -> Tensor:
        output = self.backbone(pixel_values=pixels, **self._options)
        if self.pool == "auto" and output.get("pooler_output") is not None:
            return output.pooler_output.flatten(1)  # convolutional backbones give [b, C, 1, 1]
        states = output.last_hidden_state  # [b, C, h, w], or [b, patches, C]
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
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
        return self.embedding(pooled)


def _load(spec: TransformersSpec) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """Return the backbone and the pixel mean and deviation it was trained with (ImageNet's where nothing says)."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    if spec.config is not None or (not spec.pretrained and spec.name in CONFIG_MAPPING):
        if spec.name not in CONFIG_MAPPING:
            raise UserError(
                f"model.image.name: no transformers model type {spec.name!r}{nearest(spec.name, CONFIG_MAPPING)}"
            )
        return AutoModel.from_config(_configuration(spec)), IMAGENET_MEAN, IMAGENET_STD

    try:
        config = AutoConfig.from_pretrained(spec.name)
        config = getattr(config, "vision_config", config)  # CLIP and its kin: the image tower alone
        if not spec.pretrained:
            return AutoModel.from_config(config), IMAGENET_MEAN, IMAGENET_STD
        backbone, report = AutoModel.from_pretrained(
            spec.name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        tried = "local folder" if Path(spec.name).is_dir() else "local folder (there is none) and hub id"
        raise UserError(
            f"model.image.name: could not load {spec.name!r}; tried as {tried}: {reason} "
            "Without the hub, give a local folder, or pretrained: false with a model type such as 'resnet' or 'vit'."
        ) from None
    missing = set(report["missing_keys"])
    if any(key.startswith("pooler.") for key in missing):
        backbone.pooler = None  # many checkpoints ship without it; a random one would only scramble the features
        missing = {key for key in missing if not key.startswith("pooler.")}
    if missing:
        raise UserError(
            f"model.image.name: the weights of {spec.name!r} lack {len(missing)} tensors, e.g. {min(missing)}"
        )
    return backbone, *_pixel_statistics(spec.name)


def _configuration(spec: TransformersSpec) -> Any:
    from transformers import CONFIG_MAPPING

    settings = spec.config or {}
    accepted = CONFIG_MAPPING[spec.name]()
    for key in settings:
        if not hasattr(accepted, key):
            raise UserError(f"model.image.config: {spec.name!r} has no {key!r}{nearest(key, accepted.to_dict())}")
    try:
        config = CONFIG_MAPPING[spec.name](**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.image.config: not a configuration of {spec.name!r}: {error}") from None
    return getattr(config, "vision_config", config)


def _pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # weights without a preprocessor file
        settings = {}
    return tuple(settings.get("image_mean", IMAGENET_MEAN)), tuple(settings.get("image_std", IMAGENET_STD))
