import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from distributed.data.dataset import BadSampleError
from distributed.data.images import decode_image, decode_regions


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_pixels_come_out_as_channels_first_rgb():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG"), 6, 100)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels.transpose(2, 0, 1))


def test_alpha_is_laid_over_white():
    half_red = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert decode_image(encode(half_red, "PNG"), 4, 100)[:, 0, 0].tolist() == [255, 127, 127]
    nothing = Image.new("LA", (4, 4), (0, 0))
    assert (decode_image(encode(nothing, "PNG"), 4, 100) == 255).all()


def test_palette_transparency_is_laid_over_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode_image(encode(image, "PNG", transparency=1), 4, 100) == 255).all()


def test_the_shorter_side_is_resized_and_the_centre_cut_out():
    image = Image.new("RGB", (30, 10), (0, 0, 0))
    image.paste((255, 255, 255), (10, 0, 20, 10))  # the middle third is white
    assert (decode_image(encode(image, "PNG"), 10, 1000) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_other_formats_and_large_reductions(kind):
    decoded = decode_image(encode(Image.new("RGB", (400, 300), (10, 200, 90)), kind), 32, 10**6)
    assert decoded.shape == (3, 32, 32)
    assert abs(decoded.reshape(3, -1).mean(1) - [10, 200, 90]).max() < 4  # the formats are lossy


def test_camera_orientation_is_undone():
    image = Image.new("RGB", (16, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    decoded = decode_image(encode(image, "JPEG", exif=exif.tobytes(), quality=95), 16, 1000)
    assert decoded[:, 2].max() < 10
    assert decoded[:, -3].min() > 245


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("side", [8_000, 60_000])  # below and above what Pillow itself refuses
def test_a_decompression_bomb_is_refused_by_its_header(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(BadSampleError) as caught:
        decode_image(bomb, 64, 50_000_000)
    assert caught.value.cause == "oversized image"


@pytest.mark.parametrize("data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(BadSampleError) as caught:
        decode_image(data, 8, 100)
    assert caught.value.cause == "undecodable image"


def test_a_truncated_image_is_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, "PNG")
    with pytest.raises(BadSampleError, match="undecodable image"):
        decode_image(data[: len(data) // 2], 64, 10_000)


def test_formats_that_are_not_expected_are_not_tried():
    with pytest.raises(BadSampleError, match="undecodable image"):
        decode_image(encode(Image.new("RGB", (8, 8)), "GIF"), 8, 100)


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def npy(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_regions_come_out_as_float32(dtype):
    regions = np.arange(12, dtype=dtype).reshape(3, 4) / 8
    for stored in (regions, np.asfortranarray(regions)):
        decoded = decode_regions(npy(stored))
        assert decoded.dtype == np.float32
        assert np.array_equal(decoded, regions)


def test_an_object_array_is_never_unpickled():
    objects = np.empty((1, 1), dtype=object)
    objects[0, 0] = Boom()
    with pytest.raises(BadSampleError, match="undecodable regions"):
        decode_regions(npy(objects, allow_pickle=True))
    with pytest.raises(BadSampleError, match="undecodable regions"):
        decode_regions(pickle.dumps(Boom()))


def test_regions_with_a_lying_header_are_refused():
    data = npy(np.zeros((3, 4), np.float32))
    for bad in (
        data[:-1],
        data + b"x",
        data.replace(b"(3, 4)", b"(3, 9)"),
        npy(np.zeros(3)),
        npy(np.zeros((2, 2), int)),
    ):
        with pytest.raises(BadSampleError, match="undecodable regions"):
            decode_regions(bad)
