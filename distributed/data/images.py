"""Decoding what a stranger's shard holds, checked before it is unpacked, and augmenting images by seeded draws.

Three image formats and plain float arrays. Shapes: S side in pixels handed to the model · M side of the cached image, a
seventh larger than S when crops are drawn · R regions · F features.
"""

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from allpairs.errors import UserError
from allpairs.files import existing
from distributed.data.dataset import BadSampleError
from distributed.data.draws import Purpose, draw, draw_unit

if TYPE_CHECKING:
    from allpairs.models.preprocessing import ImagePreprocessing

# No other format is tried: some of Pillow's readers start programs or parse rarely checked formats.
FORMATS = ("PNG", "JPEG", "WEBP")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Parse an image's header; nothing is decompressed yet.

    Raises:
        BadSampleError: ``undecodable image``, or ``oversized image`` for more than `max_pixels` pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSampleError("oversized image", str(error)) from error
    except Exception as error:  # a hostile header can make a parser raise anything
        raise BadSampleError("undecodable image", str(error)) from error
    if image.width * image.height > max_pixels:
        raise BadSampleError(
            "oversized image", f"{image.width}×{image.height} pixels, at most {max_pixels} are allowed"
        )
    return image


def decode_image(
    data: bytes, side: int, max_pixels: int, preprocessing: "ImagePreprocessing | None" = None
) -> np.ndarray:
    """Decode to ``[3, side, side]`` uint8 RGB: alpha over white, shorter side resized to `side`, centre crop.

    With a pretrained model's `preprocessing` its resizing and cropping take the place of ours.

    Raises:
        BadSampleError: see `open_image`.
    """
    image = open_image(data, max_pixels)
    try:
        if preprocessing is None:
            image.draft("RGB", (side, side))  # JPEG only: decodes at the nearest 1/2, 1/4, 1/8 that is large enough
        ImageOps.exif_transpose(image, in_place=True)
        image = _middle(_opaque(image), max(1, max_pixels // side**2))
        if preprocessing is not None:
            return preprocessing.geometry(image, side)
        scale = side / min(image.size)
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        pixels = np.asarray(image)[top : top + side, left : left + side]
    except Exception as error:  # as above: truncated or hostile data
        raise BadSampleError("undecodable image", str(error)) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_images(
    files: Iterable[str | Path],
    side: int = 64,
    preprocessing: "ImagePreprocessing | None" = None,
    *,
    max_pixels: int = 50_000_000,
) -> torch.Tensor:
    """Return image files as evaluation sees them, ``[b, 3, side, side]`` uint8: what `DualEncoder.encode_images` takes.

    `side` is the run's `data.image_size`. A whole pretrained model decides it by its own `preprocessing`, which is then
    `encoder.preprocessing`.

    Raises:
        UserError: a file that is not there or cannot be decoded.
    """
    side = side if preprocessing is None else preprocessing.side
    images = []
    for file in map(Path, files):
        try:
            images.append(torch.from_numpy(decode_image(existing(file).read_bytes(), side, max_pixels, preprocessing)))
        except (BadSampleError, OSError) as error:
            raise UserError(f"{file}: {error}; accepted: {', '.join(FORMATS)} files") from None
    return torch.stack(images) if images else torch.empty(0, 3, side, side, dtype=torch.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, (255, 255, 255))
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _middle(image: Image.Image, proportion: int) -> Image.Image:
    """Cut an image longer than `proportion` : 1 to its middle: one row of pixels, resized, would fill any memory."""
    width, height = image.size
    longest = proportion * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def decode_regions(data: bytes) -> np.ndarray:
    """Decode a ``.npy`` member to ``[R, F]`` float32. Nothing is unpickled: object arrays are refused by their header.

    Raises:
        BadSampleError: ``undecodable regions``, ``empty regions``, or ``non-finite regions`` for a value that is NaN,
            infinite or too large for float32.
    """
    stream = io.BytesIO(data)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # as for images: numpy evaluates the header as a literal
        raise BadSampleError("undecodable regions", str(error)) from error
    body = data[stream.tell() :]
    whole = len(shape) == 2 and min(shape) >= 0 and math.prod(shape) * dtype.itemsize == len(body)
    if dtype.kind != "f" or not whole:
        raise BadSampleError(
            "undecodable regions", f"{dtype} {shape} in {len(body)} bytes; expected a whole [R, F] float array"
        )
    if not len(body):
        raise BadSampleError("empty regions", f"shape {shape}")
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    with np.errstate(over="ignore"):
        regions = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(regions)
    if not finite.all():
        raise BadSampleError("non-finite regions", f"{finite.size - np.count_nonzero(finite)} of {finite.size} values")
    return regions


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
