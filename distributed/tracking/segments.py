"""What Weights & Biases holds of a run on this disk: one file per process that tracked it, read and mended.

A process that is killed leaves its file in the middle of a record, or empty: wandb writes in blocks of 32 KiB. Its own
`wandb sync` stops at such a file, and at every later one of the same run. The file is W&B's header, then a LevelDB log
(blocks of 32 KiB, no record part across their ends, a checksum each) of protobuf records.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from allpairs.files import replacing
from distributed.run_directory import RunDirectory

Record = Any
"""`wandb.proto.wandb_internal_pb2.Record`; the generated module says nothing of its types."""

_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK = 32 * 1024
_PART = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class Segment:
    """One of the files: what one process told W&B."""

    file: Path
    records: list[Record]
    """The whole ones, in order."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read `file` up to its end or its first damage."""
        return cls(file, list(_records(file)))

    @property
    def online(self) -> bool:
        """Whether it was sent to the server as it was written."""
        return not self.file.parent.name.startswith("offline-")

    @property
    def sent(self) -> bool:
        """Whether a server has it: what was sent stays as it is."""
        return self.online or self.marker.exists()

    @property
    def marker(self) -> Path:
        """The file by which wandb notes that a segment was uploaded."""
        return self.file.with_name(f"{self.file.name}.synced")

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None where it was killed."""
        codes: list[int] = [record.exit.exit_code for record in self.records if record.HasField("exit")]
        return codes[-1] if codes else None

    @property
    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of metrics, by W&B's step; the example retrievals are none."""
        rows = {}
        for record in self.records:
            if record.HasField("history"):
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                if "step" in row:
                    rows[row["_step"]] = {key: value for key, value in row.items() if not key.startswith("_")}
        return rows


def segments(run: RunDirectory) -> list[Segment]:
    """Return what is there of `run`, the oldest first."""
    # `latest-run` is a link to one of them; a folder's name holds when it was begun.
    files = [file for file in run.wandb.glob("*run-*/run-*.wandb") if not file.parent.is_symlink()]
    files.sort(key=lambda file: file.parent.name.removeprefix("offline-"))
    return [Segment.read(file) for file in files]


def mend(run: RunDirectory, *, keep: int | None, exit_code: int) -> list[Segment]:
    """Bring every file of `run` to an end that W&B can read, and return them.

    What a killed process left half is cut off, and its end added. Rows from the `keep`-th of metrics.jsonl on belong to
    steps that are done again: they go, unless a server has them (None: no step is). A file without a beginning says
    nothing and goes too.
    """
    mended = []
    for segment in segments(run):
        records = [
            record
            for record in segment.records
            if keep is None or segment.sent or not record.HasField("history") or record.history.step.num < keep
        ]
        if not any(record.HasField("run") for record in records):
            shutil.rmtree(segment.file.parent)
            continue
        if segment.exit_code is None:
            records.append(_end(records[-1].num + 1, exit_code))
        if len(records) != len(segment.records) or segment.exit_code is None:
            with replacing(segment.file) as partial:
                partial.write_bytes(_log(records))
        mended.append(Segment(segment.file, records))
    return mended


def _end(number: int, exit_code: int) -> Record:
    from wandb.proto.wandb_internal_pb2 import Record, RunExitRecord  # type: ignore[attr-defined]

    return Record(num=number, exit=RunExitRecord(exit_code=exit_code))


def _records(file: Path) -> Iterator[Record]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, position, parts = file.read_bytes(), len(_HEADER), b""
    while position + _PART.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _PART.size:
            position += left
            continue
        checksum, length, kind = _PART.unpack_from(data, position)
        part = data[position + _PART.size : position + _PART.size + length]
        if len(part) < length or checksum != _checksum(kind, part):
            return
        position += _PART.size + length
        parts = part if kind in (_WHOLE, _FIRST) else parts + part
        if kind in (_WHOLE, _LAST):
            try:
                yield Record.FromString(parts)
            except DecodeError:
                return


def _log(records: list[Record]) -> bytes:
    """Write `records` as the file W&B would have written."""
    log = bytearray(_HEADER)
    for record in records:
        data, begun = record.SerializeToString(), False
        while True:
            left = _BLOCK - len(log) % _BLOCK
            if left < _PART.size:
                log += bytes(left)
                left = _BLOCK
            part, data = data[: left - _PART.size], data[left - _PART.size :]
            kind = (_MIDDLE if data else _LAST) if begun else (_FIRST if data else _WHOLE)
            log += _PART.pack(_checksum(kind, part), len(part), kind) + part
            begun = True
            if not data:
                break
    return bytes(log)


def _checksum(kind: int, part: bytes) -> int:
    return zlib.crc32(part, zlib.crc32(bytes([kind])))
