"""W&B's files, read without the code under test."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2


def wandb_records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Read a .wandb file: seven bytes of header, then a LevelDB log of 32 KiB blocks that holds protobuf records."""
    data, position, parts = file.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def assert_whole(run: Path) -> list[tuple[int, list[int]]]:
    """Assert that the files of `run` together hold every row of metrics.jsonl once, in order, each file with its end.

    Return the exit code and the steps of each.
    """
    told, files = [], []
    paths = [file for file in run.glob("wandb/*run-*/*.wandb") if not file.parent.is_symlink()]
    for file in sorted(paths, key=lambda file: file.parent.name.removeprefix("offline-")):
        records = list(wandb_records(file))
        (end,) = (record for record in records if record.HasField("exit"))
        assert end is records[-1]
        steps = []
        for record in records:
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "step" in items:  # a row of metrics: the example retrievals have none
                steps.append(items["_step"])
                told.append((items["_step"], {key: value for key, value in items.items() if key[0] != "_"}))
        files.append((end.exit.exit_code, steps))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert told == list(enumerate(rows))
    assert len(told) > 3
    return files
