import io
import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from allpairs.errors import UserError
from allpairs.hashes import sha256
from distributed.data import open_dataset
from distributed.data.writer import Sample, new_folder, write_split


def samples(png, count):
    for i in range(count):
        yield Sample(f"s/{i:03d}", "png", png((i, 2, 3)), [f"first {i}", f" second\n{i} é"], {"number": i})


def write(folder, content, **options):
    return write_split(folder, content, name="made", split="train", source={"kind": "test"}, **options)


def test_webdataset_reads_our_shards(tmp_path, png):
    write(tmp_path / "d", samples(png, 7), shard_samples=3)
    files = sorted(str(file) for file in (tmp_path / "d").glob("*.tar"))
    assert len(files) == 3
    reader = webdataset.WebDataset(files, shardshuffle=False, empty_check=False)
    for number, sample in enumerate(reader):
        assert sample["__key__"] == f"s/{number:03d}"
        assert sample["txt"].decode() == f"first {number}\nsecond {number} é"
        assert json.loads(sample["json"]) == {"number": number}
        assert sample["png"] == png((number, 2, 3))
        assert Image.open(io.BytesIO(sample["png"])).getpixel((0, 0)) == (number, 2, 3)
    assert number == 6


def test_the_manifest_tells_what_is_there(tmp_path, png):
    manifest = write(tmp_path / "d", samples(png, 7), shard_samples=3)
    assert (manifest.samples, manifest.captions) == (7, 14)
    assert [(shard.file, shard.samples, shard.captions) for shard in manifest.shards] == [
        ("shard-000000.tar", 3, 6),
        ("shard-000001.tar", 3, 6),
        ("shard-000002.tar", 1, 2),
    ]
    for shard in manifest.shards:
        assert shard.sha256 == sha256(tmp_path / "d" / shard.file)
        assert shard.bytes == (tmp_path / "d" / shard.file).stat().st_size
    dataset = open_dataset(tmp_path / "d")
    assert dataset.manifest == manifest
    assert dataset.captions(6) == ["first 6", "second 6 é"]


def test_the_same_samples_give_the_same_bytes(tmp_path, png):
    for name in ("a", "b"):
        write(tmp_path / name, samples(png, 5))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_moved_data_set_still_opens(tmp_path, png):
    write(tmp_path / "d", samples(png, 3))
    (tmp_path / "d").rename(tmp_path / "moved")
    assert open_dataset(tmp_path / "moved").read(2).data == png((2, 2, 3))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a.b", "png", b"", ["x"]), "a key has no dot"),
        (Sample("s/000", "png", b"", ["x"]), "occurs twice"),
        (Sample("new", "png", b"", [" "]), "has no caption"),
        (Sample("new", "png", b"", ["broken \ud83d emoji"]), "cannot be written as UTF-8"),
        (Sample("caf\udce9", "png", b"", ["x"]), "cannot be written as UTF-8"),
    ],
)
def test_samples_that_no_reader_could_read_are_refused(tmp_path, png, sample, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "d", [*samples(png, 1), sample])


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="no samples"):
        write(tmp_path / "d", [])


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail(fresh):
        (fresh / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", overwrite=False) as fresh:
        fail(fresh)
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "deep" / "out", overwrite=False) as fresh:
        (fresh / "all").touch()
        assert not (tmp_path / "deep" / "out").exists()
    assert [file.name for file in (tmp_path / "deep").rglob("*")] == ["out", "all"]


def test_an_empty_folder_is_filled(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with new_folder(Path(), overwrite=False) as fresh:
        (fresh / "all").touch()
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["out", "out/all"]


def test_only_a_data_set_is_overwritten_and_only_on_demand(tmp_path, png):
    out = tmp_path / "out"
    write(out, samples(png, 1))
    with pytest.raises(UserError, match="exists already"), new_folder(out, overwrite=False):
        pass
    with pytest.raises(RuntimeError), new_folder(out, overwrite=True):
        raise RuntimeError
    assert (out / "manifest.json").exists()  # a failed replacement leaves the old one
    with new_folder(out, overwrite=True) as fresh:
        (fresh / "new").touch()
    assert [file.name for file in out.iterdir()] == ["new"]
    with pytest.raises(UserError, match="is no data set"), new_folder(out, overwrite=True):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
