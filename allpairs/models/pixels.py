"""From the bytes of a picture to what a network expects."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelNormalization(nn.Module):
    """Turn uint8 `[b, 3, H, W]` into floats of zero mean and unit variance per channel, channels last in memory.

    The statistics are buffers: they follow the model to its device and are saved with its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        # In units of a byte, so that forward is one subtraction and one division.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """Return `images` normalised, `[b, 3, H, W]`; a ValueError unless they are uint8 with three channels."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 [b, 3, H, W], not {images.dtype} {list(images.shape)}")
        pixels = images.to(self.mean.dtype, memory_format=torch.channels_last)
        return (pixels - self.mean) / self.std
