"""Drawing a scene: three times too large, then reduced, so that edges are smooth."""

import io
import math
import random

from PIL import Image, ImageChops, ImageDraw

from distributed.data.scenes.sampling import Scene, Thing

SIDE = 80  # pixels
_OVERSAMPLE = 3

_COLOURS = {
    "red": (214, 40, 40), "orange": (245, 130, 32), "yellow": (246, 209, 45), "green": (46, 150, 70),
    "blue": (40, 90, 200), "purple": (125, 60, 165), "pink": (243, 140, 180), "brown": (125, 80, 45),
    "black": (25, 25, 28),
}  # fmt: skip
_BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (200, 200, 202),
    "cream": (250, 240, 215),
    "pale blue": (205, 228, 245),
}
_SHADE = 20  # each channel of a colour varies by up to this much between pictures
_JITTER = 0.03  # of the side, each thing's place
_TILT = 10  # degrees, each thing

# Per arrangement and thing: centre x, centre y, room (a large thing's diameter), as parts of the side.
_PLACES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "centre": ((0.5, 0.5, 0.6),),
    "top left": ((0.28, 0.28, 0.44),),
    "top right": ((0.72, 0.28, 0.44),),
    "bottom left": ((0.28, 0.72, 0.44),),
    "bottom right": ((0.72, 0.72, 0.44),),
    "left": ((0.26, 0.5, 0.42), (0.74, 0.5, 0.42)),
    "above": ((0.5, 0.24, 0.4), (0.5, 0.77, 0.4)),
    "on": ((0.5, 0.26, 0.4), (0.5, 0.72, 0.44)),
    "diagonal": ((0.27, 0.27, 0.4), (0.73, 0.73, 0.4)),
    "nest": ((0.5, 0.53, 0.5), (0.5, 0.5, 0.86)),
    "row": ((0.19, 0.5, 0.3), (0.5, 0.5, 0.3), (0.81, 0.5, 0.3)),
    "column": ((0.5, 0.19, 0.3), (0.5, 0.5, 0.3), (0.5, 0.81, 0.3)),
    "pyramid": ((0.5, 0.25, 0.38), (0.25, 0.74, 0.38), (0.75, 0.74, 0.38)),
    "nest left": ((0.31, 0.53, 0.34), (0.31, 0.5, 0.54), (0.8, 0.5, 0.34)),
    "nest right": ((0.69, 0.53, 0.34), (0.69, 0.5, 0.54), (0.2, 0.5, 0.34)),
    "grid": ((0.26, 0.26, 0.38), (0.74, 0.26, 0.38), (0.26, 0.74, 0.38), (0.74, 0.74, 0.38)),
    "two nests": ((0.26, 0.53, 0.31), (0.26, 0.5, 0.46), (0.74, 0.53, 0.31), (0.74, 0.5, 0.46)),
}
_SMALL = 0.68  # of a large thing's diameter


def _regular(corners: int, start: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners on the unit circle from angle `start` in degrees; with `inner`, every second one at that radius."""
    step = 360 / corners
    points = []
    for i in range(corners):
        radius = inner if inner is not None and i % 2 else 1.0
        angle = math.radians(start + i * step)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(y + 2.5) / 16))
    return points


_ARM = 0.34
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _regular(48, 0),
    "square": [(x * 0.86, y * 0.86) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))],
    "triangle": [(x, y * 1.0 + 0.12) for x, y in _regular(3, -90)],
    "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
    "star": _regular(10, -90, inner=0.42),
    "heart": _heart(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "hexagon": _regular(6, 0),
}  # fmt: skip


def render_png(scene: Scene, seed: str) -> bytes:
    """Return the picture as PNG, `SIDE` × `SIDE` RGB; places, tilts and shades are drawn by `seed`."""
    draw = random.Random(f"render/{seed}")
    side = SIDE * _OVERSAMPLE
    canvas = Image.new("RGB", (side, side), _shade(draw, _BACKGROUNDS[scene.background], _SHADE // 3))
    circles = _place(scene, draw)
    outer = [pair[1] for pair in scene.nests]
    for i in sorted(range(len(circles)), key=lambda i: i not in outer):  # what holds another thing is drawn first
        x, y, radius = (value * side for value in circles[i])
        mask = _mask(scene.things[i], max(2, round(radius)), draw.uniform(-_TILT, _TILT))
        colour = _shade(draw, _COLOURS[scene.things[i].colour], _SHADE)
        canvas.paste(colour, (round(x) - mask.width // 2, round(y) - mask.height // 2), mask)
    stream = io.BytesIO()
    canvas.reduce(_OVERSAMPLE).save(stream, "PNG")
    return stream.getvalue()


def _place(scene: Scene, draw: random.Random) -> list[tuple[float, float, float]]:
    """Return centre x, centre y and radius per thing, as parts of the side."""
    inner = {pair[0]: pair[1] for pair in scene.nests}
    circles: list[tuple[float, float, float]] = []
    for thing, (x, y, room) in zip(scene.things, _PLACES[scene.arrangement], strict=True):
        jitter = _JITTER / (4 if len(circles) in inner else 1)  # an inner thing has no room to move
        across, down = draw.uniform(-jitter, jitter), draw.uniform(-jitter, jitter)
        radius = room / 2 * (_SMALL if thing.size == "small" else 1.0) * draw.uniform(0.92, 1.04)
        circles.append((x + across, y + down, radius))
    if scene.arrangement == "on":  # touching: the upper thing stands on the lower one
        x, y, radius = circles[1]
        circles[0] = (x, y - 0.88 * (radius + circles[0][2]), circles[0][2])
    return circles


def _mask(thing: Thing, radius: int, tilt: float) -> Image.Image:
    whole = _polygon(thing.shape, radius, 1.0, tilt)
    if thing.fill == "solid":
        return whole
    rim = ImageChops.subtract(whole, _polygon(thing.shape, radius, 0.7 if thing.fill == "outlined" else 0.86, tilt))
    if thing.fill == "outlined":
        return rim
    stripes = Image.new("L", whole.size)
    pen = ImageDraw.Draw(stripes)
    width = max(4, radius // 4)
    for offset in range(0, 2 * whole.width, 2 * width):
        pen.line([(offset, 0), (offset - whole.height, whole.height)], fill=255, width=round(width * 0.8))
    return ImageChops.lighter(rim, ImageChops.multiply(whole, stripes))


def _polygon(shape: str, radius: int, scale: float, tilt: float) -> Image.Image:
    side = round(2.6 * radius)  # room for a tilted square's corners
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    points = [
        (side / 2 + radius * scale * (x * cos - y * sin), side / 2 + radius * scale * (x * sin + y * cos))
        for x, y in _OUTLINES[shape]
    ]
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask


def _shade(draw: random.Random, colour: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, channel + draw.randint(-spread, spread))) for channel in colour)
    return red, green, blue
