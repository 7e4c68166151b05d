"""Emoji drawings with English captions, from a user's checkouts of googlefonts/noto-emoji and unicode-org/cldr-json.

Five captions per emoji from its name and keywords; skin-tone and gender variants make hard negatives.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from allpairs.errors import UserError
from distributed.data.build import Incomplete, split_by_seed
from distributed.data.draws import Purpose, choose
from distributed.data.writer import Sample

ANNOTATIONS = (
    "cldr-json/cldr-annotations-full/annotations/en/annotations.json",
    "cldr-json/cldr-annotations-derived-full/annotationsDerived/en/annotations.json",
)
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
    incomplete.counts["no English name in CLDR"] += len(files) - len(known)
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
        file = cldr / relative
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            entries = content["annotationsDerived" if "Derived" in relative else "annotations"]["annotations"]
        except OSError as error:
            raise UserError(f"--cldr {cldr}: cannot read {relative} ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not CLDR annotations ({error!r})") from error
        for characters, entry in entries.items():
            if entry.get("tts") and entry.get("default"):
                plain = characters.replace(chr(int(_VARIATION_SELECTOR, 16)), "")
                names.setdefault(plain, (entry["tts"][0], list(entry["default"])))
    return names
