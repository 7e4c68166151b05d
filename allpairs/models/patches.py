"""Pictures of any proportions in arrays of one shape, for models that read patches (SigLIP 2 with NaFlex weights).

Shape legend: b images, N patches of each (padded), P side of a patch.
"""

import numpy as np
import torch
from torch import Tensor


def pack(patches: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """Return uint8 `[3, (1 + N)·P, P]`: the patches below each other, under one that holds `rows` and `columns`.

    `patches` are uint8 `[N, P·P·3]`, channels last in each, those of the picture first.
    """
    header = np.zeros((3, side, side), dtype=np.uint8)
    header.reshape(-1)[:4] = (*divmod(rows, 256), *divmod(columns, 256))
    below = patches.reshape(-1, side, side, 3).transpose(3, 0, 1, 2).reshape(3, -1, side)
    return np.concatenate([header, below], axis=1, dtype=np.uint8)


def is_packed(images: Tensor, side: int) -> bool:
    """Say whether `images` `[b, 3, H, W]` are what `pack` made, stacked, rather than squares."""
    return images.shape[3] == side and images.shape[2] > side


def shapes_of(images: Tensor) -> Tensor:
    """Return rows and columns of packed uint8 `images`, int64 `[b, 2]`."""
    numbers = images.flatten(1)[:, :4].long()
    return numbers[:, [0, 2]] * 256 + numbers[:, [1, 3]]


def from_packed(pixels: Tensor, shapes: Tensor, side: int) -> dict[str, Tensor]:
    """Return what the library's model reads of packed `pixels` (normalised) of `shapes` `[b, 2]`."""
    b, count = len(pixels), pixels.shape[2] // side - 1
    cut = pixels[:, :, side:].reshape(b, 3, count, side, side)
    present_bN = torch.arange(count, device=pixels.device) < shapes.prod(dim=1, keepdim=True)
    return {
        "pixel_values": cut.permute(0, 2, 3, 4, 1).reshape(b, count, side * side * 3),
        "pixel_attention_mask": present_bN.long(),
        "spatial_shapes": shapes,
    }


def from_squares(pixels: Tensor, side: int) -> dict[str, Tensor]:
    """Return what the library's model reads of `pixels` `[b, 3, H, W]` that are pictures, all of one size."""
    b, _, height, width = pixels.shape
    rows, columns = height // side, width // side
    cut = pixels[:, :, : rows * side, : columns * side].reshape(b, 3, rows, side, columns, side)
    return {
        "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, side * side * 3),
        "pixel_attention_mask": torch.ones(b, rows * columns, dtype=torch.long, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * b, device=pixels.device),
    }
