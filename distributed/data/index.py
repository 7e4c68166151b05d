"""The index beside the manifest: one Arrow record batch per shard, memory-mapped, so that any sample is one `pread`.

Columns: key · image_offset, image_size, suffix (size -1: no image member) · fingerprint of its bytes (0: none) ·
text_offset, text_size (size -1: no text member) · captions (null: the text is not UTF-8).
"""

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from distributed.data.pictures import NO_PICTURE, fingerprint
from distributed.data.shards import ShardSample, Span, walk_shard

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("suffix", pa.string()),
        ("fingerprint", pa.uint64()),
        ("text_offset", pa.int64()),
        ("text_size", pa.int64()),
        ("captions", pa.list_(pa.string())),
    ]
)
ABSENT = Span(0, -1)


def parse_captions(text: bytes, mode: str) -> list[str] | None:
    """Return a text member's captions with white space normalised, empty ones dropped; None when it is not UTF-8.

    `mode` is ``lines`` (one caption per line) or ``whole`` (one caption).
    """
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    parts = decoded.splitlines() if mode == "lines" else [decoded]
    return [caption for part in parts if (caption := " ".join(part.split()))]


def index_shard(file: Path, mode: str) -> pa.RecordBatch:
    """Return the index of one shard. Raises shards.TruncatedShardError."""
    with file.open("rb") as stream:
        return _record_batch(list(walk_shard(file)), stream.fileno(), mode)


def _record_batch(samples: list[ShardSample], descriptor: int, mode: str) -> pa.RecordBatch:
    images = [sample.image or ABSENT for sample in samples]
    texts = [sample.text or ABSENT for sample in samples]
    captions = [
        parse_captions(os.pread(descriptor, span.size, span.offset), mode) if span.size >= 0 else [] for span in texts
    ]
    prints = [
        fingerprint(os.pread(descriptor, span.size, span.offset)) if span.size >= 0 else NO_PICTURE for span in images
    ]
    columns = [
        [sample.key for sample in samples],
        [span.offset for span in images],
        [span.size for span in images],
        [sample.suffix for sample in samples],
        prints,
        [span.offset for span in texts],
        [span.size for span in texts],
        captions,
    ]
    return pa.record_batch([pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def write_index(file: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write one record batch per shard, in the manifest's order."""
    with pa.ipc.new_file(file, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_index(file: Path) -> list[pa.RecordBatch]:
    """Return an index's record batches, mapped from the file. Raises OSError or pa.ArrowInvalid when it is broken."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    if not reader.schema.equals(SCHEMA):
        raise pa.ArrowInvalid("its columns are not those of this version")
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]
