"""A data set folder, open for reading: counts, captions and single samples, without walking a tar file."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allpairs.errors import UserError, nearest
from allpairs.hashes import sha256
from distributed.data.index import MARGINS, read_index
from distributed.data.manifest import INDEX, MANIFEST, Manifest, is_folder, shard_path
from distributed.data.pictures import Pictures, shared
from distributed.data.shards import check_name
from distributed.data.texts import SplitTexts

_OPEN_SHARDS = 64

CAUSES = (
    "missing image",
    "missing text",
    "undecodable image",
    "oversized image",
    "undecodable regions",
    "empty regions",
    "non-finite regions",
    "text not UTF-8",
    "empty captions",
)
"""Why a sample cannot be used; training, evaluation and `validate` count under these names."""


class BadSampleError(Exception):
    """One sample cannot be used; `cause`, one of `CAUSES`, is what it is counted under."""

    def __init__(self, cause: str, detail: str = "") -> None:
        assert cause in CAUSES, cause
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause


@dataclass(frozen=True)
class RawSample:
    """One sample as it is stored.

    Attributes:
        key: its name in the shard.
        id: its row in the data set.
        suffix: ``png``, ``jpg``, ``jpeg``, ``webp`` or ``npy``.
        data: the bytes of the image, or of the region array.
        captions: its captions.
    """

    key: str
    id: int
    suffix: str
    data: bytes
    captions: list[str]


class Dataset:
    """One split on disk; open it with `open_dataset`. Rows are 0 … len-1 in manifest order and are the sample ids.

    Attributes:
        folder: where it lies.
        manifest: what it holds.
        kind: ``image`` or ``regions``.
        stamps: sizes and times of its shards when they were compared with their hashes (`distributed.data.verify`).
    """

    def __init__(self, folder: Path, manifest: Manifest, index: list[pa.RecordBatch]) -> None:
        self.stamps: dict[str, list[int | str]] = {}
        self.folder = folder
        self.manifest = manifest
        self.kind = manifest.kind
        self._index = index
        self._files = [shard_path(shard.file, folder) for shard in manifest.shards]
        self._first_row = np.cumsum([0, *self.shard_samples])
        # An evicted file object is closed only when the last thread reading from it has let go.
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(lambda shard: FileIO(self._files[shard]))

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def shard_samples(self) -> list[int]:
        """Samples per shard, in manifest order."""
        return [shard.samples for shard in self.manifest.shards]

    def caption_counts(self) -> np.ndarray:
        """Return how many captions each row has, int64 ``[len]``; 0 where its text cannot be used. No shard is read."""
        lengths = [pc.list_value_length(batch.column("captions")).fill_null(0).to_numpy() for batch in self._index]
        return np.concatenate([np.empty(0, np.int64), *lengths]).astype(np.int64)

    @property
    def margin_columns(self) -> list[str]:
        """The columns of margins that the data set was built with."""
        names = self._index[0].schema.names if self._index else []
        return [name.removeprefix(MARGINS) for name in names if name.startswith(MARGINS)]

    def margins(self, row: int, column: str) -> list[float]:
        """Return what one of `margin_columns` holds for the sample's captions, one number each; none if it is bad."""
        return self._field(row, MARGINS + column)

    def key(self, row: int) -> str:
        """Return the sample's key."""
        return self._field(row, "key")

    def where(self, row: int) -> str:
        """Return shard and key of a row, for messages."""
        return f"{self._files[self._place(row)[0]]}: {self.key(row)}"

    def captions(self, row: int) -> list[str]:
        """Return the sample's captions.

        Raises:
            BadSampleError: it has no text member, or one that is empty or not UTF-8.
        """
        if self._field(row, "text_size") < 0:
            raise BadSampleError("missing text")
        captions = self._field(row, "captions")
        if captions is None:
            raise BadSampleError("text not UTF-8")
        if not captions:
            raise BadSampleError("empty captions")
        return captions

    def pictures(self, split: str) -> Pictures:
        """Return the fingerprints of all pictures of what is called `split`; no shard is touched."""
        columns = [batch.column("fingerprint").to_numpy() for batch in self._index]
        return Pictures(split, np.concatenate([np.empty(0, np.uint64), *columns]), self.key)

    def all_captions(self) -> Iterator[str]:
        """Yield every caption in manifest order; no image and no shard is touched."""
        for batch in self._index:
            yield from batch.column("captions").flatten().to_pylist()

    def captions_by_key(self) -> Iterator[tuple[str, list[str]]]:
        """Yield every sample's key and captions (none where its text cannot be used) in manifest order."""
        for batch in self._index:
            columns = (batch.column(name).to_pylist() for name in ("key", "captions"))
            for key, captions in zip(*columns, strict=True):
                yield key, captions or []

    def texts(self) -> SplitTexts:
        """Return the numbers of all captions, image by image; no shard is touched."""
        texts = SplitTexts(self.manifest.split)
        for _, captions in self.captions_by_key():
            texts.add(captions)
        return texts

    def read(self, row: int) -> RawSample:
        """Return one sample.

        Raises:
            BadSampleError: a half of it is missing or unusable.
            UserError: the shard ends before the sample does.
        """
        captions = self.captions(row)
        size = self._field(row, "image_size")
        if size < 0:
            raise BadSampleError("missing image")
        file = self._open(self._place(row)[0])
        data = os.pread(file.fileno(), size, self._field(row, "image_offset"))
        if len(data) != size:
            raise UserError(f"{self.where(row)}: the shard ends inside this sample: it was cut off after the build")
        return RawSample(self.key(row), row, self._field(row, "suffix"), data, captions)

    def _place(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a data set with {len(self)} samples")
        shard = int(np.searchsorted(self._first_row, row, side="right")) - 1
        return shard, row - int(self._first_row[shard])

    def _field(self, row: int, column: str) -> Any:
        shard, local = self._place(row)
        return self._index[shard].column(column)[local].as_py()


def shared_pictures(datasets: Mapping[str, Dataset]) -> list[str]:
    """Say, for every two of these splits, which pictures stand in both."""
    return shared([dataset.pictures(split) for split, dataset in datasets.items()])


def open_dataset(path: str | Path) -> Dataset:
    """Open the data set folder `path` (one split), checking that manifest, index and shards fit together.

    The index is compared with its hash every time, at about a gigabyte a second; of shards only the sizes are.

    Raises:
        UserError: no such folder (names the nearest), no manifest (says how to build one), or a shard or the index is
            missing, cut off, altered or replaced.
    """
    folder = Path(path)
    if not is_folder(folder):
        raise UserError(f"data folder {str(folder)!r} does not exist{_nearest_sibling(folder)}")
    if not (folder / MANIFEST).exists():
        raise UserError(_no_manifest(folder))
    check_name(folder)
    manifest = Manifest.read(folder)
    for shard in manifest.shards:
        file = shard_path(shard.file, folder)
        if not file.is_file():
            raise UserError(f"{file}: this shard of {folder / MANIFEST} does not exist")
        if (found := file.stat().st_size) != shard.bytes:
            raise UserError(
                f"{file}: {found} bytes, but {folder / MANIFEST} says {shard.bytes}: it was cut off or replaced; "
                f"see `python -m distributed.data validate {folder}`"
            )
    return Dataset(folder, manifest, _open_index(folder, manifest))


def _open_index(folder: Path, manifest: Manifest) -> list[pa.RecordBatch]:
    file = folder / INDEX
    if not file.is_file():
        raise UserError(f"{file} does not exist; build the data again")
    if (found := file.stat().st_size) != manifest.index_bytes:
        raise UserError(f"{file}: {found} bytes, but the manifest says {manifest.index_bytes}; build the data again")
    if sha256(file) != manifest.index_sha256:
        raise UserError(f"{file}: not the index that {MANIFEST} was written with: it was altered; build the data again")
    try:
        index = read_index(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: broken index ({error}); build the data again") from error
    if [batch.num_rows for batch in index] != [shard.samples for shard in manifest.shards]:
        raise UserError(f"{file}: its samples are not those of the manifest; build the data again")
    return index


def _nearest_sibling(folder: Path) -> str:
    siblings = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
    return nearest(folder.name, siblings) if siblings else ""


def _no_manifest(folder: Path) -> str:
    splits = sorted(entry.parent.name for entry in folder.glob(f"*/{MANIFEST}"))
    if splits:
        return f"{folder} holds the splits {', '.join(splits)}: name one of them, such as {folder / splits[0]}"
    if any(folder.glob("*.tar")):
        return (
            f"{folder} holds shards but no {MANIFEST}: index them where they lie with "
            f"`python -m distributed.data build img2dataset {folder} --split train --out OUT` and give OUT/train"
        )
    return f"{folder} holds no {MANIFEST}: build it with `python -m distributed.data build …` (see --help)"
