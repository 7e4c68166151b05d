"""Some of the queries, against the full gallery.

``ids.txt``: one image per line, by its key (names of digits too: ``0000016``) or, where no image has such a key, by its
id; a line that names one image by its key and another by its id is refused. ``file.json``: a list of images, ids as
numbers and keys as strings; or ``{"images": [...]}``; or ``{"captions": [...]}`` with rows of captions. Images bring
their captions as queries of the other direction, and captions bring their images: both directions then ask about the
same images.
"""

import hashlib
import json
import re
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
        images = _image_rows(path, entries, embeddings, of_lines=kind == "lines")
        captions = np.flatnonzero(np.isin(embeddings.caption_ids, embeddings.image_ids[images]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Subset(
        captions, {"file": path.name, "sha256": digest, "named": "captions" if kind == "captions" else "images"}
    )


def _entries(path: Path) -> dict[str, list[Any]]:
    if path.suffix != ".json":
        try:
            lines = [line.strip() for line in existing(path).read_text(encoding="utf-8").splitlines()]
        except (UnicodeDecodeError, OSError) as error:
            raise UserError(f"{path} cannot be read as lines of text: {error}") from None
        return {"lines": [(number, line) for number, line in enumerate(lines, start=1) if line]}
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


def _image_rows(path: Path, entries: list[Any], embeddings: EmbeddingSet, *, of_lines: bool) -> np.ndarray:
    by_id = {int(image_id): row for row, image_id in enumerate(embeddings.image_ids)}
    by_key = {key: row for row, key in enumerate(embeddings.image_keys)}
    if of_lines:
        return np.unique([_row_of_line(f"{path}, line {number}", line, by_key, by_id) for number, line in entries])
    found = []
    for place, entry in enumerate(entries):
        known: dict[Any, int] = by_id if type(entry) is int else by_key
        if not isinstance(entry, int | str) or entry not in known:
            hint = _nearest_key(entry, by_key) if isinstance(entry, str) else ""
            kind = "key" if isinstance(entry, str) else "id"
            raise UserError(f"{path}: entry {place}: no image has the {kind} {entry!r}{hint}")
        found.append(known[entry])
    return np.unique(found)


def _row_of_line(where: str, line: str, by_key: dict[str, int], by_id: dict[int, int]) -> int:
    """Return the row of the image that a line of text names: by its key, else by its id."""
    is_number = re.fullmatch("0|-?[1-9][0-9]{0,18}", line) is not None
    of_key, of_id = by_key.get(line), by_id.get(int(line)) if is_number else None
    if of_key is not None and of_id is not None and of_key != of_id:
        ids, keys = {row: image_id for image_id, row in by_id.items()}, {row: key for key, row in by_key.items()}
        raise UserError(
            f"{where}: {line!r} is the key of one image (with the id {ids[of_key]}) and the id of another (with the key"
            f" {keys[of_id]!r}); accepted: a JSON file, where {json.dumps(line)} is a key and {int(line)} an id"
        )
    row = of_key if of_key is not None else of_id
    if row is None:
        kind = "key or id" if is_number else "key"
        raise UserError(f"{where}: no image has the {kind} {line!r}{_nearest_key(line, by_key)}")
    return row


def _nearest_key(key: str, by_key: dict[str, int]) -> str:
    hint = nearest(key, by_key) if len(by_key) <= 10_000 else ""  # finding the nearest of more takes long
    return hint if len(hint) <= 200 else ""
