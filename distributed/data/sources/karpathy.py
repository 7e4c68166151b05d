"""Karpathy-schema JSON with a folder of images (COCO, Flickr30K and their like).

Schema: images[].{filename, filepath?, split (train/restval/val/test), imgid?, sentences[].{raw, tokens?}}, from
Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from allpairs.errors import UserError, nearest
from distributed.data.build import Incomplete
from distributed.data.shards import IMAGE_SUFFIXES
from distributed.data.writer import Sample

# restval are the images of COCO's validation set that everyone trains on as well.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def karpathy_splits(file: Path, images: Path, incomplete: Incomplete) -> tuple[str, dict[str, Iterator[Sample]]]:
    """Return the data set's name and its samples per split, in the file's order.

    Raises:
        UserError: the JSON is not of this schema (names the entry), or the folder of images does not exist.
    """
    if not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content["images"]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a Karpathy-schema JSON (an object with the list 'images'): {error!r}") from error
    parts: dict[str, list[dict[str, Any]]] = {}
    for number, entry in enumerate(entries):
        where = f"{file}: images[{number}]"
        if missing := [field for field in ("filename", "split", "sentences") if field not in entry]:
            raise UserError(f"{where} has no {missing[0]!r}")
        if entry["split"] not in SPLITS:
            raise UserError(f"{where}: unknown split {entry['split']!r}{nearest(str(entry['split']), SPLITS)}")
        parts.setdefault(SPLITS[entry["split"]], []).append(entry)
    name = str(content.get("dataset", file.stem))
    return name, {split: _samples(part, images, incomplete) for split, part in parts.items()}


def _samples(entries: list[dict[str, Any]], images: Path, incomplete: Incomplete) -> Iterator[Sample]:
    for entry in entries:
        relative = PurePosixPath(entry.get("filepath", "")) / entry["filename"]
        if relative.is_absolute() or ".." in relative.parts:
            raise UserError(f"image path {str(relative)!r} leads out of the folder of images")
        suffix = relative.suffix[1:].lower()
        if suffix not in IMAGE_SUFFIXES:
            raise UserError(f"image {str(relative)!r}: not one of {', '.join(IMAGE_SUFFIXES)}")
        captions = [sentence.get("raw") or " ".join(sentence.get("tokens", ())) for sentence in entry["sentences"]]
        if not any(map(str.strip, captions)):
            incomplete.report("no caption", str(relative))
        elif not (images / relative).is_file():
            incomplete.report("no such image", str(images / relative))
        else:
            extra: dict[str, Any] = {
                name: entry[name] for name in ("cocoid", "filename", "imgid", "split") if name in entry
            }
            key = relative.with_name(relative.stem.replace(".", "_")).as_posix()
            yield Sample(key, suffix, (images / relative).read_bytes(), captions, extra)
