import io
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from distributed.data.scenes import SIZES, scene_splits
from distributed.data.scenes.render import _COLOURS, SIDE, render_png
from distributed.data.scenes.sampling import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    FILLS,
    SHAPES,
    Scene,
    Thing,
    sample_families,
)

SMALL = {"train": 40, "val": 10, "test": 10}


@pytest.fixture(scope="module")
def samples():
    return {split: list(part) for split, part in scene_splits(seed=0, sizes=SMALL).items()}


def test_one_seed_gives_one_data_set(samples):
    again = {split: list(part) for split, part in scene_splits(seed=0, sizes=SMALL).items()}
    assert samples == again
    other = list(scene_splits(seed=1, sizes=SMALL)["val"])
    assert not {sample.data for sample in other} & {sample.data for sample in samples["val"]}


def test_every_picture_has_five_different_captions(samples):
    for sample in samples["train"]:
        assert len(sample.captions) == 5
        assert len(set(sample.captions)) >= 4  # a lone shape can be said twice in the same words
        image = Image.open(io.BytesIO(sample.data))
        assert image.size == (SIDE, SIDE)
        assert image.mode == "RGB"


@pytest.fixture(scope="module")
def full():
    return sample_families(0, SIZES)


def test_the_whole_data_set_has_no_scene_twice(full):
    assert {split: len(part) for split, part in full.items()} == {"train": 2400, "val": 300, "test": 500}
    scenes = [scene for part in full.values() for scene, _, _ in part]
    assert len(set(scenes)) == len(scenes)


def test_everything_there_is_occurs(full):
    scenes = [scene for scene, _, _ in full["test"]]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.fill for thing in things} == set(FILLS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.arrangement for scene in scenes} == {a for group in ARRANGEMENTS.values() for a in group}
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}


def differences(a: Scene, b: Scene) -> list[str]:
    """Names of what two scenes of a family differ in, counted thing by thing."""
    found = ["background"] if a.background != b.background else []
    if a.arrangement != b.arrangement:
        found.append("relation")
    if Counter(a.things) == Counter(b.things):
        return found + (["relation"] if a.things != b.things else [])
    for mine, theirs in zip(a.things, b.things, strict=True):
        found += [name for name in ("shape", "colour", "size", "fill") if getattr(mine, name) != getattr(theirs, name)]
    return found


def test_families_are_one_attribute_apart_within_their_split(full):
    changed = Counter()
    for part in full.values():
        families = defaultdict(list)
        for scene, family, name in part:
            families[family].append((scene, name))
        for (first, nothing), *others in families.values():
            assert nothing == "nothing"
            assert len(others) == 9
            for scene, name in others:
                assert differences(first, scene) == [name]
                changed[name] += 1
    assert min(changed[name] for name in ("colour", "shape", "size", "fill", "relation", "background")) > 100


def test_full_captions_tell_scenes_of_a_family_apart(samples):
    """Each of the first two captions names every attribute, so within a family no two pictures share one."""
    for sample_of in range(2):
        for start in range(0, SMALL["train"], 10):
            texts = [sample.captions[sample_of] for sample in samples["train"][start : start + 10]]
            assert len(set(texts)) == 10


def picture(*things: Thing, arrangement: str, background: str = "white") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(render_png(Scene(arrangement, things, background), "t")))).astype(int)


def where(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Rows and columns of the pixels nearer to `colour` than 60 in every channel."""
    return np.argwhere((abs(pixels - _COLOURS[colour]) < 60).all(-1))


RED = Thing("circle", "red", "large", "solid")
BLUE = Thing("square", "blue", "large", "solid")


@pytest.mark.parametrize(("arrangement", "axis"), [("left", 1), ("above", 0), ("on", 0)])
def test_relations_are_drawn_as_said(arrangement, axis):
    pixels = picture(RED, BLUE, arrangement=arrangement)
    red, blue = where(pixels, "red"), where(pixels, "blue")
    assert red[:, axis].max() <= blue[:, axis].min() + 3
    gap = blue[:, axis].min() - red[:, axis].max()
    assert (gap < 4) if arrangement == "on" else (gap > 3)


def test_inside_is_surrounded():
    inner = Thing("star", "yellow", "small", "solid")
    pixels = picture(inner, BLUE, arrangement="nest")
    yellow, blue = where(pixels, "yellow"), where(pixels, "blue")
    assert (yellow.min(0) > blue.min(0)).all()
    assert (yellow.max(0) < blue.max(0)).all()


def test_size_and_fill_change_the_area():
    def area(size: str, fill: str) -> int:
        return len(where(picture(Thing("hexagon", "blue", size, fill), arrangement="centre"), "blue"))

    assert area("large", "solid") > 2 * area("small", "solid")
    assert area("large", "solid") > area("large", "striped") > area("large", "outlined") > 0


def test_edges_are_smooth():
    pixels = picture(RED, arrangement="centre")
    # One shade of red, one of white, and the blends between them: 3×3 samples per pixel give eight.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 2 + 8
