import dataclasses
import json
import pickle
import shutil

import pytest

from allpairs.errors import UserError
from allpairs.hashes import sha256
from distributed.data import open_dataset
from distributed.data.dataset import BadSampleError
from distributed.data.manifest import Manifest, shard_path


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_samples_are_read_at_random(shards_dataset, png):
    red, blue = png((255, 0, 0)), png((0, 0, 255))
    dataset = shards_dataset(
        [
            [("a.png", red), ("a.txt", b"red"), ("b.json", b"{}"), ("b.png", blue), ("b.txt", b"blue\n  thing ")],
            [],
            [("sub/c.jpeg", red), ("sub/c.txt", "größe".encode())],
        ]
    )
    assert len(dataset) == 3
    assert [dataset.key(row) for row in range(3)] == ["a", "b", "sub/c"]
    assert list(dataset.all_captions()) == ["red", "blue thing", "größe"]
    sample = dataset.read(1)
    assert (sample.key, sample.id, sample.suffix, sample.captions) == ("b", 1, "png", ["blue thing"])
    assert sample.data == blue
    assert dataset.read(2).data == red
    with pytest.raises(IndexError):
        dataset.read(3)


def test_members_that_are_not_expected_are_never_read(shards_dataset, png):
    evil = pickle.dumps(Boom())
    members = [("a.pkl", evil), ("a.pyd", evil), ("a.pth", evil), ("a.png", png()), ("a.txt", b"fine"), ("a.cls", evil)]
    sample = shards_dataset([members]).read(0)
    assert sample.captions == ["fine"]
    assert sample.data == png()


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("a.png", b"x")], "missing text"),
        ([("a.txt", b"words")], "missing image"),
        ([("a.png", b"x"), ("a.txt", b" \n ")], "empty captions"),
        ([("a.png", b"x"), ("a.txt", b"caf\xe9")], "text not UTF-8"),
    ],
)
def test_broken_samples_name_their_cause(shards_dataset, members, cause):
    with pytest.raises(BadSampleError) as caught:
        shards_dataset([members]).read(0)
    assert caught.value.cause == cause


def test_a_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "scenes").mkdir()
    with pytest.raises(UserError, match="did you mean 'scenes'"):
        open_dataset(tmp_path / "scnes")


def test_a_folder_of_splits_says_which(numbered, tmp_path):
    numbered([2])
    shutil.move(tmp_path / "indexed", tmp_path / "data" / "val")
    with pytest.raises(UserError, match="holds the splits val"):
        open_dataset(tmp_path / "data")


def test_bare_shards_say_how_to_index_them(tmp_path, tar_shard, png):
    tar_shard(tmp_path / "bare" / "0.tar", [("a.png", png()), ("a.txt", b"x")])
    with pytest.raises(UserError, match="build img2dataset"):
        open_dataset(tmp_path / "bare")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"build it with"):
        open_dataset(tmp_path / "empty")


def test_a_truncated_or_missing_shard_is_refused(numbered, tmp_path):
    numbered([3, 3])
    shard = tmp_path / "shards" / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"00001\.tar: \d+ bytes, but .* says \d+: it was cut off"):
        open_dataset(tmp_path / "indexed")
    shard.unlink()
    with pytest.raises(UserError, match=r"00001\.tar: this shard .* does not exist"):
        open_dataset(tmp_path / "indexed")


def test_an_index_that_does_not_fit_is_refused(numbered, tmp_path):
    numbered([3])
    index = tmp_path / "indexed" / "index.arrow"
    content = index.read_bytes()
    index.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r"not the index that manifest\.json was written with"):
        open_dataset(tmp_path / "indexed")
    manifest = Manifest.read(tmp_path / "indexed")
    dataclasses.replace(manifest, index_sha256=sha256(index)).write(tmp_path / "indexed")
    with pytest.raises(UserError, match="broken index"):
        open_dataset(tmp_path / "indexed")
    index.write_bytes(content[:-8])
    with pytest.raises(UserError, match="bytes, but the manifest says"):
        open_dataset(tmp_path / "indexed")
    index.unlink()
    with pytest.raises(UserError, match="does not exist; build the data again"):
        open_dataset(tmp_path / "indexed")


@pytest.mark.parametrize("change", [{"format": 99}, {"samples": 7}, {"surprise": 1}])
def test_a_manifest_that_is_not_ours_is_refused(numbered, tmp_path, change):
    numbered([3])
    file = tmp_path / "indexed" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_dataset(tmp_path / "indexed")
    file.write_text("[]")
    with pytest.raises(UserError, match="not a data manifest"):
        open_dataset(tmp_path / "indexed")


@pytest.mark.parametrize("name", ["pipe:touch hacked", "pipe: cat x", "http://h/x.tar", "s3://b/x.tar", "file:/x.tar"])
def test_commands_and_addresses_are_refused(numbered, tmp_path, name):
    with pytest.raises(UserError, match="are refused"):
        shard_path(name, tmp_path)
    numbered([3])
    file = tmp_path / "indexed" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["shards"][0]["file"] = name
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="are refused"):
        open_dataset(tmp_path / "indexed")
