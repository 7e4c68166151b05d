"""Emoji drawings with English captions, from a user's checkouts of googlefonts/noto-emoji and unicode-org/cldr-json.

Five captions per emoji from its name and keywords; skin-tone and gender variants make hard negatives.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from allpairs.errors import UserError
from distributed.data.build import Incomplete, split_by_seed
from distributed.data.documents import read_document
from distributed.data.draws import Purpose, choose
from distributed.data.writer import Sample

ANNOTATIONS = (
    "cldr-json/cldr-annotations-full/annotations/en/annotations.json",
    "cldr-json/cldr-annotations-derived-full/annotationsDerived/en/annotations.json",
)


@dataclass(frozen=True)
class Annotation:
    """What CLDR says of one emoji: its name (for text to speech) and its keywords."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    tts: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Annotations:
    """One language's annotations, by emoji."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    annotations: dict[str, Annotation]


_SHAPE = TypeAdapter(dict[str, Annotations])
_PREFIX = "emoji_u"
_CODES = re.compile(_PREFIX + r"([0-9a-f]+(?:_[0-9a-f]+)*)")
_VARIATION_SELECTOR = "fe0f"  # asks for the coloured form; CLDR leaves it out, some file names have it


def emoji_splits(
    noto: Path, cldr: Path, incomplete: Incomplete, *, pixels: int, seed: int, val: float, test: float
) -> dict[str, Iterator[Sample]]:
    """Return the samples per split; drawings that CLDR has no English name for are left out and counted.

    Raises:
        UserError: a checkout without the expected files.
    """
    drawings = noto / "png" / str(pixels)
    if not drawings.is_dir():
        sizes = sorted(entry.name for entry in (noto / "png").glob("*") if entry.is_dir())
        raise UserError(f"--noto {noto}: no folder png/{pixels} (sizes there: {', '.join(sizes) or 'none'})")
    names = _read_annotations(cldr)
    files: dict[str, Path] = {}
    for file in sorted(drawings.glob(f"{_PREFIX}*.png")):
        if match := _CODES.fullmatch(file.stem):
            codes = [code for code in match[1].split("_") if code != _VARIATION_SELECTOR]
            files.setdefault("_".join(codes), file)
    known = [key for key in files if _characters(key) in names]
    for key in sorted(files.keys() - known):
        incomplete.note("no English name in CLDR", files[key].name)
    if not known:
        raise UserError(f"{drawings}: no drawing {_PREFIX}*.png that CLDR has a name for")
    parts = split_by_seed(known, seed=seed, val=val, test=test)

    def samples(keys: list[str]) -> Iterator[Sample]:
        for key in keys:
            name, keywords = names[_characters(key)]
            extra = {"characters": _characters(key), "name": name}
            yield Sample(key, "png", files[key].read_bytes(), emoji_captions(name, keywords, key, seed), extra)

    return {split: samples(keys) for split, keys in parts.items()}


def emoji_captions(name: str, keywords: list[str], key: str, seed: int) -> list[str]:
    """Return five captions: the name, three keywords, four, the name and two, all of them; drawn by seed and key."""
    item = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")

    def some(count: int) -> str:
        count = min(count, len(keywords))
        drawn = choose(seed, count, Purpose.KEYWORDS, item, available=len(keywords), count=count)
        return ", ".join(keywords[i] for i in np.sort(drawn))

    return [name, some(3), some(4), f"{name}: {some(2)}", ", ".join(keywords)]


def _characters(key: str) -> str:
    return "".join(chr(int(code, 16)) for code in key.split("_"))


def _read_annotations(cldr: Path) -> dict[str, tuple[str, list[str]]]:
    names: dict[str, tuple[str, list[str]]] = {}
    for relative in ANNOTATIONS:
        for part in read_document(cldr / relative, _SHAPE, "CLDR annotations").values():
            for characters, entry in part.annotations.items():
                if entry.tts and entry.default:
                    plain = characters.replace(chr(int(_VARIATION_SELECTOR, 16)), "")
                    names.setdefault(plain, (entry.tts[0], entry.default))
    return names
