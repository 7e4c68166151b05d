"""A small residual image encoder that trains from scratch on a CPU.

Shape legend: b images, C channels, h and w positions of a feature map.
"""

import torch
from torch import Tensor, nn

from allpairs.models.pixels import PixelNormalization
from allpairs.models.spec import CnnSpec


class CnnEncoder(nn.Module):
    """uint8 images `[b, 3, H, W]` of any size → `[b, dim]`, not normalised.

    The picture is cut into patches of 4×4 pixels, since convolutions at full resolution would take most of the time;
    then `spec.blocks` blocks of one residual convolution, with a strided convolution between blocks that halves height
    and width and doubles the channels. The mean over positions goes through one linear layer.
    """

    def __init__(self, spec: CnnSpec, dim: int) -> None:
        super().__init__()
        channels = spec.width
        layers = [_downsample(3, channels, kernel=4, stride=4), _Residual(channels)]
        for _ in range(spec.blocks - 1):
            layers += [_downsample(channels, 2 * channels, kernel=3, stride=2), _Residual(2 * channels)]
            channels *= 2
        self.pixels = PixelNormalization()
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Linear(channels, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 `images` `[b, 3, H, W]` as `[b, dim]`."""
        map_bChw = self.features(self.pixels(images))
        return self.embedding(map_bChw.mean(dim=(2, 3)))


class _Residual(nn.Module):
    """relu(x + BN(conv(x))), at first the identity: the normalisation's weight starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.branch = nn.Sequential(_convolution(channels, channels, kernel=3, stride=1), norm)

    def forward(self, map_bChw: Tensor) -> Tensor:
        return torch.relu_(map_bChw + self.branch(map_bChw))


def _downsample(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(_convolution(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    # An even kernel needs no border; a bias would be taken out again by the normalisation.
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if kernel % 2 else 0, bias=False)
    # Convolutions are fastest with channels last, on CPUs (oneDNN) as on tensor cores.
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer
