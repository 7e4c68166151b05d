"""Hand-made shards and data sets, written with tarfile: the project's writer is not what checks its reader."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from distributed.data import Dataset, open_dataset
from distributed.data.__main__ import app
from distributed.data.sources.img2dataset import index_shards

Members = Sequence[tuple[str, bytes]]


def png_bytes(colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def png() -> Callable[..., bytes]:
    return png_bytes


@pytest.fixture
def tar_shard() -> Callable[[Path, Members], Path]:
    """Write (name, bytes) members to a plain tar."""

    def write(path: Path, members: Members) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def command(in_process):
    """Run the command line in this process: exit code, standard output, standard error."""
    return in_process(app)


@pytest.fixture
def shards_dataset(tmp_path, tar_shard) -> Callable[[Sequence[Members]], Dataset]:
    """Turn lists of members into shards, index them where they lie, and open them."""

    def make(shards: Sequence[Members]) -> Dataset:
        files = [tar_shard(tmp_path / "shards" / f"{i:05d}.tar", members) for i, members in enumerate(shards)]
        index_shards(tmp_path / "indexed", files, name="made", split="train")
        return open_dataset(tmp_path / "indexed")

    return make


@pytest.fixture
def numbered(shards_dataset) -> Callable[[Sequence[int]], Dataset]:
    """Data set whose sample n is a picture of colour (n % 256, n // 256, 7) with the caption "number n"."""

    def make(shard_sizes: Sequence[int]) -> Dataset:
        shards, number = [], 0
        for size in shard_sizes:
            members = []
            for _ in range(size):
                picture = png_bytes((number % 256, number // 256, 7))
                members += [(f"k{number:04d}.png", picture), (f"k{number:04d}.txt", f"number {number}".encode())]
                number += 1
            shards.append(members)
        return shards_dataset(shards)

    return make


@pytest.fixture
def karpathy_json() -> Callable[[Path], tuple[Path, Path]]:
    """A small Karpathy-schema JSON with its images, in every form the schema has."""

    def make(folder: Path) -> tuple[Path, Path]:
        entries = []
        for number, split in enumerate(("train", "restval", "val", "test", "train", "test")):
            place = "train2014" if number % 2 else ""
            entry = {
                "filename": f"img.{number}.png",
                "imgid": number,
                "split": split,
                "sentids": [2 * number, 2 * number + 1],
                "sentences": [
                    {"raw": f"picture {number}\n", "tokens": ["picture", str(number)], "sentid": 2 * number},
                    {"tokens": ["another", "of", str(number)], "sentid": 2 * number + 1},
                ],
            }
            if place:
                entry["filepath"] = place
            file = folder / "images" / place / entry["filename"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png_bytes((number, 0, 0)))
            entries.append(entry)
        (folder / "dataset.json").write_text(json.dumps({"dataset": "tiny", "images": entries}), encoding="utf-8")
        return folder / "dataset.json", folder / "images"

    return make
