"""What a training run leaves for its evaluation: embeddings, the rows of its history and its configuration."""

import json
from pathlib import Path
from typing import Any

from allpairs.errors import UserError, nearest
from allpairs.files import existing
from retrieval_eval.yaml_text import parse_file

SPLITS = ("train", "val", "test")


def embeddings_of(run: Path, split: str) -> Path:
    """Return the folder of a run's embeddings of `split`.

    UserError where it is missing: with the nearest there is, or the command that makes them.
    """
    if split != Path(split).name:
        raise UserError(
            f"--split {split!r} is a path; accepted: a name in {run / 'embeddings'}, or --embeddings FOLDER"
        )
    folder = existing(run) / "embeddings" / split
    if folder.exists():
        return folder
    there = [each.name for each in folder.parent.glob("[!.]*") if each.is_dir()]
    hint = nearest(split, there) if there else ""
    if split in SPLITS or "did you mean" not in hint:
        hint = f"; `python -m distributed.embed --run {run} --split {split}` makes them"
    raise UserError(f"{run} has no embeddings of the split {split!r}{hint}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file of JSON lines, none if there is no file; UserError names a line that is not an object."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    # Bytes, cut at the only line end that JSON lines have: text may hold others, and be cut inside a character.
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break  # not yet, or never, written to its end
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        rows.append(row)
    return rows


def read_config(path: Path) -> dict[str, Any] | None:
    """Read the resolved configuration of a run, None if there is no file; UserError if it is not a YAML mapping."""
    if not path.exists():
        return None
    config = parse_file(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a YAML mapping")
    return config
