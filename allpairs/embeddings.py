"""Embeddings of a split under a checkpoint, as training hands them to evaluation and analysis: one folder.

Two matrices, two tables and a manifest:

``images.npy`` [N, D] and ``captions.npy`` [M, D] float32; ``images.parquet`` (id int64, key, thumbnail bytes or null);
``captions.parquet`` (id int64 = its image's id, text); ``manifest.json``. Nothing in it is pickled.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from allpairs.errors import UserError, nearest
from allpairs.files import existing, read_json, replacing_folder, write_json

FORMAT = 2


@dataclass(frozen=True)
class Origin:
    """Where embeddings come from; empty where nobody said."""

    run: str = ""
    checkpoint: str = ""
    """Name of the checkpoint: best or last."""
    step: int | None = None
    objective: str = ""
    """Name of the objective it was trained with, as `allpairs.objectives.make` takes it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its arguments, a learned scale as the number learned."""
    captions_per_image: int = 1
    """Captions of each image in its training batches."""


@dataclass(eq=False)
class EmbeddingSet:
    """Embeddings of one split with what a report shows of each row; UserError if the parts do not fit together."""

    images: np.ndarray
    """[N, D] float32."""
    captions: np.ndarray
    """[M, D] float32."""
    image_ids: np.ndarray
    """[N] int64, distinct."""
    caption_ids: np.ndarray
    """[M] int64: the id of the image that each caption describes."""
    image_keys: list[str]
    """[N] names of the images, as in the data."""
    texts: list[str]
    """[M] captions."""
    thumbnails: list[bytes | None] = field(default_factory=list)
    """[N] small PNG or JPEG files, or None; an empty list for none at all."""
    split: str = "test"
    data_hash: str = ""
    """Hash of the split's data manifest."""
    protocol: str = "custom"
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        # Mapped files stay mapped: a float32 array is not copied.
        self.images, self.captions = (np.asanyarray(x, dtype=np.float32) for x in (self.images, self.captions))
        self.image_ids, self.caption_ids = (np.asarray(x, dtype=np.int64) for x in (self.image_ids, self.caption_ids))
        self.thumbnails = self.thumbnails or [None] * len(self.images)
        if self.images.ndim != 2 or self.captions.ndim != 2 or self.images.shape[1] != self.captions.shape[1]:
            raise UserError(
                "images and captions must be two matrices with equally many columns,"
                f" got shapes {list(self.images.shape)} and {list(self.captions.shape)}"
            )
        for rows, parts in (
            (len(self.images), ("image_ids", "image_keys", "thumbnails")),
            (len(self.captions), ("caption_ids", "texts")),
        ):
            for part in parts:
                if len(getattr(self, part)) != rows:
                    raise UserError(f"{part} has {len(getattr(self, part))} entries for {rows} embeddings")
        values, counts = np.unique(self.image_ids, return_counts=True)
        if (counts > 1).any():
            raise UserError(f"image ids must be distinct; id {values[counts > 1][0]} occurs {counts.max()} times")

    def check_matches(self) -> None:
        """Raise UserError for a number that is not finite, or an image or caption that nothing belongs to."""
        for name, rows in (("images", self.images), ("captions", self.captions)):
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                raise UserError(f"{name}[{int(bad.argmax())}] holds a number that is not finite")
        for name, ids, other, others in (
            ("image_ids", self.image_ids, "caption", self.caption_ids),
            ("caption_ids", self.caption_ids, "image", self.image_ids),
        ):
            alone = ~np.isin(ids, others)
            if alone.any():
                raise UserError(f"{name}[{int(alone.argmax())}] = {ids[alone.argmax()]}: no {other} has this id")

    @property
    def manifest(self) -> dict[str, Any]:
        """Facts that belong into every report: split, data hash, sizes, protocol."""
        return {
            "format": FORMAT,
            "split": self.split,
            "data_hash": self.data_hash,
            "protocol": self.protocol,
            "origin": asdict(self.origin),
            "images": len(self.images),
            "captions": len(self.captions),
            "dim": int(self.images.shape[1]),
        }

    def write(self, folder: str | Path) -> Path:
        """Write the folder so that it appears whole or not at all, in the place of embeddings alone; return its path.

        Raises:
            UserError: `folder` holds something else.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        refuse_other_than_embeddings(folder)
        with replacing_folder(folder) as fresh:
            np.save(fresh / "images.npy", self.images, allow_pickle=False)
            np.save(fresh / "captions.npy", self.captions, allow_pickle=False)
            thumbnails = pa.array(self.thumbnails, pa.binary())
            images = {"id": self.image_ids, "key": pa.array(self.image_keys, pa.string()), "thumbnail": thumbnails}
            pq.write_table(pa.table(images), fresh / "images.parquet")
            captions = {"id": self.caption_ids, "text": pa.array(self.texts, pa.string())}
            pq.write_table(pa.table(captions), fresh / "captions.parquet")
            write_json(fresh / "manifest.json", self.manifest)
        return folder

    @classmethod
    def read(cls, folder: str | Path) -> "EmbeddingSet":
        """Read a folder that `write` made; UserError says which file is missing or does not fit.

        The matrices are memory-mapped, read-only: they may be larger than memory.
        """
        folder = Path(folder)
        if folder.is_file():
            raise UserError(f"{folder} is a file; accepted: a folder that `python -m distributed.embed` writes")
        manifest = read_json(folder / "manifest.json")
        found_format = manifest.get("format") if isinstance(manifest, dict) else None
        if found_format != FORMAT:
            raise UserError(
                f"{folder / 'manifest.json'} is not a manifest of embeddings in format {FORMAT} ({found_format});"
                " `python -m distributed.embed --run RUN --split SPLIT --out FOLDER` writes them anew"
            )
        images = _read_columns(folder / "images.parquet", ("id", "key", "thumbnail"))
        captions = _read_columns(folder / "captions.parquet", ("id", "text"))
        try:
            found = cls(
                images=read_matrix(folder / "images.npy"),
                captions=read_matrix(folder / "captions.npy"),
                image_ids=np.array(images["id"], np.int64),
                caption_ids=np.array(captions["id"], np.int64),
                image_keys=images["key"],
                texts=captions["text"],
                thumbnails=images["thumbnail"],
                split=str(manifest.get("split", "")),
                data_hash=str(manifest.get("data_hash", "")),
                protocol=str(manifest.get("protocol", "custom")),
                origin=Origin(**manifest.get("origin", {})),
            )
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        except TypeError as error:
            raise UserError(f"{folder / 'manifest.json'}: origin is not what `write` writes ({error})") from None
        wrong = [key for key in ("images", "captions", "dim") if manifest.get(key) != found.manifest[key]]
        if wrong:
            key = wrong[0]
            raise UserError(
                f"{folder}: manifest.json says {key} = {manifest.get(key)}, the files hold {found.manifest[key]}"
            )
        return found


def read_matrix(path: Path) -> np.ndarray:
    """Memory-map an ``.npy`` array of numbers, read-only; UserError for anything else, pickled objects above all."""
    try:
        array = np.load(existing(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a .npy array of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an .npz archive; accepted: one .npy array of numbers")
    return array


def _read_columns(path: Path, names: tuple[str, ...]) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(existing(path), memory_map=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}{nearest(missing[0], table.column_names)}")
    return {name: table.column(name).to_pylist() for name in names}


def refuse_other_than_embeddings(folder: Path) -> None:
    """Raise UserError if something lies at `folder` that is not embeddings, which writing them would delete."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not all((folder / name).is_file() for name in ("images.npy", "captions.npy", "manifest.json")):
        raise UserError(f"{folder} exists and holds no embeddings: it is not replaced; give a folder of another name")
