"""Some of the queries, against the full gallery.

``ids.txt``: one image per line, by id (a whole number) or by key. ``file.json``: a list of images, ids as numbers and
keys as strings; or ``{"images": [...]}``; or ``{"captions": [...]}`` with rows of captions. Images bring their captions
as queries of the other direction, and captions bring their images: both directions then ask about the same images.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError, nearest
from allpairs.files import existing, read_json


@dataclass(frozen=True, eq=False)
class Subset:
    """The captions to ask, by row, and with them their images."""

    captions: np.ndarray  # rows, ascending
    manifest: dict[str, Any]
    """The file's name and hash, and what it named."""


def read_subset(path: Path, embeddings: EmbeddingSet) -> Subset:
    """Read the subset of `embeddings` that a file names; UserError for an entry that names nothing."""
    content = _entries(path)
    kind, entries = next(iter(content.items()))
    if not entries:
        raise UserError(f"{path} names no queries; accepted: at least one image id or key, or caption row")
    if kind == "captions":
        captions = _caption_rows(path, entries, len(embeddings.captions))
    else:
        images = _image_rows(path, entries, embeddings)
        captions = np.flatnonzero(np.isin(embeddings.caption_ids, embeddings.image_ids[images]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Subset(captions, {"file": path.name, "sha256": digest, "named": kind})


def _entries(path: Path) -> dict[str, list[Any]]:
    if path.suffix != ".json":
        try:
            lines = [line.strip() for line in existing(path).read_text(encoding="utf-8").splitlines()]
        except (UnicodeDecodeError, OSError) as error:
            raise UserError(f"{path} cannot be read as lines of text: {error}") from None
        return {"images": [int(line) if line.lstrip("-").isdecimal() else line for line in lines if line]}
    content = read_json(path)
    if isinstance(content, list):
        return {"images": content}
    if isinstance(content, dict) and len(content) == 1 and isinstance(content.get(next(iter(content))), list):
        kind = next(iter(content))
        if kind in ("images", "captions"):
            return content
    raise UserError(f'{path} must be a list of images, or {{"images": [...]}}, or {{"captions": [rows]}}')


def _caption_rows(path: Path, entries: list[Any], captions: int) -> np.ndarray:
    for place, row in enumerate(entries):
        if type(row) is not int or not 0 <= row < captions:
            raise UserError(f"{path}: entry {place} is {row!r}; accepted: caption rows 0 to {captions - 1}")
    return np.unique(entries)


def _image_rows(path: Path, entries: list[Any], embeddings: EmbeddingSet) -> np.ndarray:
    by_id = {int(image_id): row for row, image_id in enumerate(embeddings.image_ids)}
    by_key = {key: row for row, key in enumerate(embeddings.image_keys)}
    found = []
    for place, entry in enumerate(entries):
        known: dict[Any, int] = by_id if type(entry) is int else by_key
        if not isinstance(entry, int | str) or entry not in known:
            hint = nearest(entry, by_key) if isinstance(entry, str) and len(by_key) <= 10_000 else ""
            kind = "key" if isinstance(entry, str) else "id"
            raise UserError(f"{path}: entry {place}: no image has the {kind} {entry!r}{_short(hint)}")
        found.append(known[entry])
    return np.unique(found)


def _short(hint: str) -> str:
    return hint if len(hint) <= 200 else ""
