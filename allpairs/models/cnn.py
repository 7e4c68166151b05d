"""A small convolutional image encoder that trains from scratch on a CPU."""

import torch
from torch import Tensor, nn

from allpairs.models.pixels import PixelNormalization
from allpairs.models.spec import CnnSpec


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    # The normalisation brings its own bias.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class CnnEncoder(nn.Module):
    """uint8 images `[b, 3, H, W]` of any size → `[b, dim]`, not normalised.

    A strided stem, then `spec.blocks` blocks of two convolutions, mean over positions, one linear layer.
    """

    def __init__(self, spec: CnnSpec, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, spec.width, stride=2)]
        channels = spec.width
        for block in range(spec.blocks):
            wider = spec.width * 2**block
            layers.append(_convolution(channels, wider, stride=2 if block else 1))
            channels = wider
        self.pixels = PixelNormalization()
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Linear(channels, dim)
        # Convolutions are fastest with channels last, on CPUs (oneDNN) as on tensor cores.
        for layer in self.features.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 `images` `[b, 3, H, W]` as `[b, dim]`."""
        return self.embedding(self.features(self.pixels(images)).mean(dim=(2, 3)))
