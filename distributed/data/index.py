"""The index beside the manifest: one Arrow record batch per shard, memory-mapped, so that any sample is one `pread`.

Columns: key · image_offset, image_size, suffix (size -1: no image member) · fingerprint of its bytes (0: none) ·
text_offset, text_size (size -1: no text member) · captions (null: the text is not UTF-8) · of each column of margins
that the data set was built with (`columns`), ``margins.NAME``: one per caption, none for a sample that cannot be used.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from allpairs.errors import UserError
from distributed.data.columns import facts_in, margins_in
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
MARGINS = "margins."
_NUMBERS = pa.list_(pa.float64())


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


def schema_with(columns: Sequence[str]) -> pa.Schema:
    """Return the schema of an index with these columns of margins."""
    return pa.schema([*SCHEMA, *(pa.field(MARGINS + name, _NUMBERS) for name in columns)])


def index_shard(file: Path, mode: str, columns: Sequence[str] = ()) -> pa.RecordBatch:
    """Return the index of one shard.

    Raises:
        shards.TruncatedShardError: the file is cut off or damaged.
        UserError: a sample has no usable margin in one of `columns`.
    """
    with file.open("rb") as stream:
        samples, descriptor = list(walk_shard(file)), stream.fileno()
        batch = _record_batch(samples, descriptor, mode)
        for name in columns:
            captions = batch.column("captions").to_pylist()
            try:
                values = [_margins(*each, name, descriptor) for each in zip(samples, captions, strict=True)]
            except ValueError as error:
                raise UserError(f"{file}: {error}; complete it, or leave the shard out") from None
            batch = batch.append_column(MARGINS + name, pa.array(values, _NUMBERS))
        return batch


def _margins(sample: ShardSample, captions: list[str] | None, name: str, descriptor: int) -> list[float]:
    if sample.image is None or not captions:
        return []
    try:
        return margins_in(facts_in(read_member(descriptor, sample.facts)), name, len(captions))
    except ValueError as error:
        raise ValueError(f"{sample.key}: {error}") from None


def read_member(descriptor: int, span: Span | None) -> bytes | None:
    """Return the bytes of a member of an open shard; None for none."""
    return None if span is None else os.pread(descriptor, span.size, span.offset)


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


def write_index(file: Path, batches: Iterable[pa.RecordBatch], columns: Sequence[str] = ()) -> None:
    """Write one record batch per shard, in the manifest's order."""
    with pa.ipc.new_file(file, schema_with(columns)) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_index(file: Path) -> list[pa.RecordBatch]:
    """Return an index's record batches, mapped from the file. Raises OSError or pa.ArrowInvalid when it is broken."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    columns = [name.removeprefix(MARGINS) for name in reader.schema.names[len(SCHEMA) :]]
    if not reader.schema.equals(schema_with(columns)):
        raise pa.ArrowInvalid("its columns are not those of this version")
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]
