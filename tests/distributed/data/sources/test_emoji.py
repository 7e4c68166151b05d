"""A made-up pair of checkouts in the layouts of googlefonts/noto-emoji and unicode-org/cldr-json."""

import json

import pytest

from allpairs.errors import UserError
from distributed.data.build import Incomplete
from distributed.data.sources.emoji import emoji_captions, emoji_splits

WAVE, LIGHT = "\U0001f44b", "\U0001f3fb"


@pytest.fixture
def checkouts(tmp_path, png):
    noto, cldr = tmp_path / "noto-emoji", tmp_path / "cldr-json"
    for name in ("u1f44b", "u1f44b_1f3fb", "u00a9_fe0f", "u00a9", "u1f1e6", "_odd", "u1F44B"):
        file = noto / "png" / "72" / f"emoji_{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png((len(name), 0, 0)))
    plain = {WAVE: {"default": ["bye", "hand", "hello", "wave"], "tts": ["waving hand"]}, "©": {"tts": ["copyright"]}}
    plain["©"]["default"] = ["C"]
    derived = {WAVE + LIGHT: {"default": ["hand", "light skin tone"], "tts": ["waving hand: light skin tone"]}}
    for package, root, entries in (
        ("cldr-annotations-full/annotations", "annotations", plain),
        ("cldr-annotations-derived-full/annotationsDerived", "annotationsDerived", derived),
    ):
        file = cldr / "cldr-json" / package / "en" / "annotations.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({root: {"identity": {"language": "en"}, "annotations": entries}}))
    return noto, cldr


def test_drawings_meet_their_names(checkouts, png):
    incomplete = Incomplete(skip=False)
    splits = emoji_splits(*checkouts, incomplete, pixels=72, seed=0, val=0.0, test=0.3)
    samples = {sample.key: sample for part in splits.values() for sample in part}
    assert sorted(samples) == ["00a9", "1f44b", "1f44b_1f3fb"]
    assert samples["00a9"].captions == ["copyright", "C", "C", "copyright: C", "C"]
    toned = samples["1f44b_1f3fb"]
    assert toned.captions[0] == "waving hand: light skin tone"
    assert toned.captions[4] == "hand, light skin tone"
    assert toned.extra["characters"] == WAVE + LIGHT
    assert samples["1f44b"].data == png((6, 0, 0))
    assert incomplete.counts == {"no English name in CLDR": 1}


def test_captions_draw_keywords_by_seed():
    keywords = ["a", "b", "c", "d", "e", "f", "g"]
    captions = emoji_captions("name", keywords, "1f44b", 0)
    assert captions == emoji_captions("name", keywords, "1f44b", 0)
    assert captions != emoji_captions("name", keywords, "1f44b", 1)
    assert [len(caption.split(", ")) for caption in captions] == [1, 3, 4, 2, 7]
    assert all(part.split(", ") == sorted(part.split(", ")) for part in captions[1:3])


def test_a_wrong_checkout_is_named(checkouts, tmp_path):
    noto, cldr = checkouts
    options = {"pixels": 72, "seed": 0, "val": 0.1, "test": 0.1}
    with pytest.raises(UserError, match=r"no folder png/128 \(sizes there: 72\)"):
        emoji_splits(noto, cldr, Incomplete(skip=False), **{**options, "pixels": 128})
    with pytest.raises(UserError, match=r"cldr-json/cldr-annotations-full/.*: cannot be read \(No such file"):
        emoji_splits(noto, tmp_path, Incomplete(skip=False), **options)
