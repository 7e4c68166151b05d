"""A small residual image encoder that trains from scratch on a CPU.

Shape legend: b images, C channels, h and w positions of a feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allpairs.models.pixels import PixelNormalization
from allpairs.models.spec import CnnSpec


class CnnEncoder(nn.Module):
    """uint8 images `[b, 3, H, W]` of any size → `[b, dim]`, not normalised.

    The picture is cut into patches of 4×4 pixels, since convolutions at full resolution would take most of the time;
    then `spec.blocks` blocks of one residual convolution, with a strided convolution between blocks that halves height
    and width and doubles the channels. Every convolution is followed by layer normalisation over the channels of each
    position, so that no picture's vector depends on the others of its batch (ConvNeXt, Liu et al. 2022, normalises so).
    The mean over positions, which tells how much there is of something, and the maximum, which tells whether it is
    there at all, go side by side through one linear layer.
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
        self.embedding = nn.Linear(2 * channels, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 `images` `[b, 3, H, W]` as `[b, dim]`."""
        map_bChw = self.features(self.pixels(images))
        return self.embedding(torch.cat([map_bChw.mean(dim=(2, 3)), map_bChw.amax(dim=(2, 3))], dim=1))


class _Residual(nn.Module):
    """relu(x + LN(conv(x))), at first the identity: the normalisation's weight starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = _ChannelNorm(channels)
        nn.init.zeros_(norm.weight)
        self.branch = nn.Sequential(_convolution(channels, channels, kernel=3, stride=1), norm)

    def forward(self, map_bChw: Tensor) -> Tensor:
        return torch.relu_(map_bChw + self.branch(map_bChw))


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over C of `[b, C, h, w]`, at each position; free of copies where channels are last."""

    def forward(self, map_bChw: Tensor) -> Tensor:
        map_bhwC = map_bChw.permute(0, 2, 3, 1)
        return F.layer_norm(map_bhwC, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def _downsample(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(_convolution(inputs, outputs, kernel, stride), _ChannelNorm(outputs), nn.ReLU(inplace=True))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    # An even kernel needs no border.
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if kernel % 2 else 0, bias=False)
    # Convolutions are fastest with channels last, on CPUs (oneDNN) as on tensor cores.
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer
