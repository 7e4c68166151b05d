"""Writing data set folders: WebDataset shards, index and manifest, whole or not at all, the same bytes every time."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from allpairs.errors import UserError
from allpairs.files import replacing_folder
from allpairs.hashes import sha256
from distributed.data.columns import columns_of, margins_in
from distributed.data.index import index_shard, write_index
from distributed.data.manifest import FORMAT, INDEX, MANIFEST, Kind, Manifest, Shard, TextMode, is_folder
from distributed.data.shards import check_name, split_name


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a shard.

    Attributes:
        key: unique in its split; no dot in its last part.
        suffix: ``png``, ``jpg``, ``jpeg``, ``webp`` or ``npy``.
        data: the bytes to store as they are.
        captions: at least one that is not blank.
        extra: what else is known, stored as ``.json``; the data set's columns of margins among it.
    """

    key: str
    suffix: str
    data: bytes
    captions: list[str]
    extra: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
        UserError: `out` exists, is not empty, and `overwrite` is off or what is there is no data set; or it cannot be
            written, or not to its end.
    """
    out = out.resolve()
    check_name(out)
    above = is_folder(out.parent)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not overwrite:
                raise UserError(f"{out} exists already; give another --out, or --overwrite to replace it")
            if not [*out.glob(MANIFEST), *out.glob(f"*/{MANIFEST}")]:
                raise UserError(
                    f"{out} is no data set (no {MANIFEST} in it or in its splits): --overwrite does not replace it"
                )
        with replacing_folder(out) as fresh:
            yield fresh
    except OSError as error:
        raise UserError(f"--out {out}: cannot be built ({error})") from error
    finally:
        if not above:
            with contextlib.suppress(OSError):  # not empty: it is there to stay
                out.parent.rmdir()


def write_split(
    folder: Path,
    samples: Iterable[Sample],
    *,
    name: str,
    split: str,
    source: Mapping[str, Any],
    kind: Kind = "image",
    shard_samples: int = 1000,
    shard_bytes: int = 2**28,
) -> Manifest:
    """Write `samples` as the data set `folder` and return its manifest.

    A shard ends after `shard_samples` samples or once it holds `shard_bytes` bytes.

    Raises:
        UserError: a key twice, a key with a dot, a sample without caption or without a margin that `source` promises,
            broken Unicode, or no sample at all.
    """
    import webdataset

    folder.mkdir()
    files: list[Path] = []
    pattern = str(folder / "shard-%06d.tar")
    with webdataset.ShardWriter(
        pattern,
        maxcount=shard_samples,
        maxsize=shard_bytes,
        post=lambda file: files.append(Path(file)),
        verbose=0,
        opener=lambda file: Path(file).open("wb"),  # its own opener would run a path that starts with "pipe:"
        encoder=False,
        user="",
        group="",
        mtime=0,
    ) as writer:
        count = 0
        for members in _checked(samples, columns_of(source)):
            writer.write(members)
            count += 1
    if not count:
        raise UserError(f"the split {split!r} of {name!r} has no samples")
    return write_manifest(folder, files, name=name, split=split, source=source, kind=kind, text="lines", relative=True)


def write_manifest(
    folder: Path,
    files: Iterable[Path],
    *,
    name: str,
    split: str,
    source: Mapping[str, Any],
    kind: Kind,
    text: TextMode,
    relative: bool,
) -> Manifest:
    """Index the shards `files` and write index and manifest into `folder`. Raises as `index.index_shard`."""
    shards: list[Shard] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            batch = index_shard(file, text, columns_of(source))
            captions = len(batch.column("captions").flatten())
            label = file.name if relative else str(file.absolute())
            shards.append(Shard(label, batch.num_rows, captions, file.stat().st_size, sha256(file)))
            yield batch

    write_index(folder / INDEX, batches(), columns_of(source))
    manifest = Manifest(
        format=FORMAT,
        name=name,
        split=split,
        source=dict(source),
        kind=kind,
        text=text,
        samples=sum(shard.samples for shard in shards),
        captions=sum(shard.captions for shard in shards),
        index_bytes=(folder / INDEX).stat().st_size,
        index_sha256=sha256(folder / INDEX),
        shards=shards,
    )
    manifest.write(folder)
    return manifest


def _checked(samples: Iterable[Sample], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    keys: set[str] = set()
    for sample in samples:
        if split_name(f"{sample.key}.{sample.suffix}") != (sample.key, sample.suffix):
            raise UserError(f"key {sample.key!r}: a key has no dot after its last '/' and does not begin with './'")
        if sample.key in keys:
            raise UserError(f"key {sample.key!r} occurs twice: every sample of a split needs its own")
        keys.add(sample.key)
        captions = [caption for text in sample.captions if (caption := " ".join(text.split()))]
        if not captions:
            raise UserError(f"sample {sample.key!r} has no caption")
        try:
            text = "\n".join(captions).encode("utf-8")
            sample.key.encode("utf-8")
        except (
            UnicodeEncodeError
        ) as error:  # a lone surrogate, from an escape in a JSON or a file name in another encoding
            raise UserError(
                f"sample {sample.key!r}: key or caption cannot be written as UTF-8 ({error.reason})"
            ) from error
        members = {"__key__": sample.key, sample.suffix: sample.data, "txt": text}
        facts = sample.extra | _margins(sample, columns)
        if facts:
            members["json"] = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode("utf-8")
        yield members


def _margins(sample: Sample, columns: Sequence[str]) -> dict[str, Any]:
    """Return the sample's margins, those of blank captions left out with them."""
    kept: dict[str, Any] = {}
    for column in columns:
        try:
            values = margins_in(sample.extra, column, len(sample.captions))
        except ValueError as error:
            raise UserError(f"sample {sample.key!r}: {error}") from None
        if isinstance(sample.extra[column], list):
            kept[column] = [value for value, text in zip(values, sample.captions, strict=True) if text.strip()]
    return kept
