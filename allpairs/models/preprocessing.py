"""A pretrained model's own image preprocessing: the library's PIL processor, cut in two.

Its geometry (resize, crop) gives uint8 pixels, which are cheap to cache and to move; its arithmetic (rescale, mean,
deviation) is one scale and one offset per channel and happens inside the model.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from allpairs.errors import UserError
from allpairs.files import write_json
from allpairs.models.hub import quietly
from allpairs.models.patches import pack

FILE = "preprocessor_config.json"


class ImagePreprocessing:
    """Pictures → uint8 `[3, S, S]` as the processor's resizing and cropping give them, and the statistics for later.

    A processor that keeps a picture's proportions (SigLIP 2, NaFlex) gives patches, packed as `allpairs.models.patches`
    says; of another side than S, for crops to be drawn from, squares.

    Attributes:
        side: S.
        mean, std: of a pixel's values in [0, 1]; (x/255 − mean)/std is what the processor gives.
    """

    def __init__(self, processor: Any, side: int) -> None:
        self._processor = processor
        self.side = side
        black, white = (self._arithmetic(value) for value in (0, 255))
        middle = self._arithmetic(128)
        if not np.allclose(black + (white - black) * (128 / 255), middle, atol=1e-5):
            raise UserError(f"{type(processor).__name__}: its treatment of pixel values is not a scale and an offset")
        self.std = tuple((1 / (white - black)).tolist())
        self.mean = tuple((-black / (white - black)).tolist())

    @classmethod
    def load(cls, name: str, config: Any) -> "ImagePreprocessing | None":
        """Read the processor of hub id or folder `name` for a vision model of `config`; None if it has none."""
        from transformers import AutoImageProcessor
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            with quietly():
                ImageProcessingMixin.get_image_processor_dict(name)
        except OSError:  # weights without a preprocessor file
            return None
        try:
            with quietly():
                processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        except Exception as error:  # the library raises whatever a strange file leads it to
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"model.name: the image preprocessing of {name!r} does not load: {reason}") from None
        return cls(processor, _side(processor, config, name))

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, in the library's own format."""
        write_json(Path(folder) / FILE, json.loads(self._processor.to_json_string()))

    def geometry(self, image: Image.Image, side: int | None = None) -> np.ndarray:
        """Return `image` (RGB) resized and cropped, uint8 `[3, side, side]` (or packed); `side` is S unless given.

        Another side scales the resizing and the crop alike.
        """
        side = side or self.side
        options: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
        if hasattr(self._processor, "include_top"):
            options["include_top"] = False
        if hasattr(self._processor, "max_num_patches"):
            if side != self.side:
                squares = np.asarray(image.resize((side, side), Image.Resampling(self._processor.resample)))
                return np.ascontiguousarray(squares.transpose(2, 0, 1))
            found = self._processor(image, **options)
            patches = np.asarray(found["pixel_values"][0], dtype=np.uint8)
            rows, columns = map(int, found["spatial_shapes"][0])
            return pack(patches, rows, columns, self._processor.patch_size)
        if side != self.side:
            for name in ("size", "crop_size"):
                size = getattr(self._processor, name, None)
                if size is not None:
                    given = dict(size)
                    options[name] = {k: round(v * side / self.side) for k, v in given.items() if v is not None}
        pixels = self._processor(image, **options)["pixel_values"][0]
        return np.ascontiguousarray(pixels, dtype=np.uint8)

    def _arithmetic(self, value: int) -> np.ndarray:
        """Return what the processor makes of a picture of one value: float64 `[3]`."""
        processor = copy.deepcopy(self._processor)
        picture = np.full((16, 16, 3), value, dtype=np.uint8)
        options: dict[str, Any] = {"do_resize": False, "input_data_format": "channels_last"}
        if hasattr(processor, "max_num_patches"):
            options |= {"patch_size": 16, "max_num_patches": 1}
            patch = np.asarray(processor(picture, **options)["pixel_values"][0], dtype=np.float64)
            return patch.reshape(-1, 3)[0]
        pixels = processor(picture, do_center_crop=False, **options)["pixel_values"][0]
        return np.asarray(pixels, dtype=np.float64)[:, 0, 0]


def _side(processor: Any, config: Any, name: str) -> int:
    """Return the side of the square pictures that the processor gives."""
    if hasattr(processor, "max_num_patches"):
        return int(processor.max_num_patches**0.5) * int(processor.patch_size)
    cropped = getattr(processor, "do_center_crop", False)
    size = dict(processor.crop_size if cropped else processor.size)
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise UserError(
            f"model.name: the image preprocessing of {name!r} gives pictures of {size}; accepted: squares of one size"
        )
    expected = getattr(config, "image_size", height)
    if expected != height and hasattr(config, "patch_size"):
        raise UserError(
            f"model.name: the image preprocessing of {name!r} gives pictures of {height} pixels, "
            f"its vision model reads {expected}"
        )
    return int(height)
