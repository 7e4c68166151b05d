"""A small residual image encoder that trains from scratch on a CPU.

Shape legend: b images, C channels, h and w positions of a feature map.
"""

import torch
from torch import Tensor, nn

from allpairs.models.pixels import PixelNormalization
from allpairs.models.spec import CnnSpec


class CnnEncoder(nn.Module):
    """uint8 images `[b, 3, H, W]` of any size → `[b, dim]`, not normalised.

    `spec.blocks` blocks, each of which halves height and width; every block but the first, where a convolution costs
    most, refines its map by a residual convolution. The mean over positions goes through one linear layer.
    """

    def __init__(self, spec: CnnSpec, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in range(spec.blocks):
            wider = spec.width * 2**block
            layers.append(nn.Sequential(*_convolution(channels, wider, stride=2), nn.ReLU(inplace=True)))
            if block:
                layers.append(_Residual(wider))
            channels = wider
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
        convolution, norm = _convolution(channels, channels, stride=1)
        nn.init.zeros_(norm.weight)
        self.branch = nn.Sequential(convolution, norm)

    def forward(self, map_bChw: Tensor) -> Tensor:
        return torch.relu_(map_bChw + self.branch(map_bChw))


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)  # the normalisation has a bias
    # Convolutions are fastest with channels last, on CPUs (oneDNN) as on tensor cores.
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
    return convolution, nn.BatchNorm2d(outputs)
