"""Image augmentation drawn by (seed, epoch, id), so that a resumed or re-split run sees the very same pictures.

Shapes: S side handed to the model · M side of the cached image, a seventh larger than S when crops are drawn.
"""

from typing import Literal

import numpy as np
from PIL import Image

from distributed.data.draws import Purpose, draw, draw_unit

Augment = Literal["none", "crop", "crop_flip"]
# The crop window's side is drawn between 7/8 of the picture (VSE++'s 224 of 256) and all of it, as evaluation sees it.
_SMALLEST_WINDOW = 7 / 8


def cached_side(side: int, augment: Augment) -> int:
    """Return M: large enough that the smallest crop still has `side` pixels."""
    return side if augment == "none" else round(side / _SMALLEST_WINDOW)


def augment_image(image: np.ndarray, side: int, augment: Augment, *, seed: int, epoch: int, row: int) -> np.ndarray:
    """Return ``[3, S, S]`` uint8 from the cached ``[3, M, M]``: a drawn window, resized, mirrored for half the rows."""
    if augment == "none":
        return image
    ids = np.array([row])
    scale, x, y = (
        float(draw_unit(seed, epoch, purpose, ids)[0])
        for purpose in (Purpose.CROP_SCALE, Purpose.CROP_X, Purpose.CROP_Y)
    )
    full = image.shape[-1]
    window = full * (_SMALLEST_WINDOW + (1 - _SMALLEST_WINDOW) * scale)
    left, top = (full - window) * x, (full - window) * y
    picture = Image.fromarray(image.transpose(1, 2, 0))
    picture = picture.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + window, top + window))
    pixels = np.asarray(picture).transpose(2, 0, 1)
    if augment == "crop_flip" and int(draw(seed, epoch, Purpose.FLIP, ids)[0]) >> 63:
        pixels = pixels[:, :, ::-1]
    return pixels
