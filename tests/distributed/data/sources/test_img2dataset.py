import pytest

from allpairs.errors import UserError
from distributed.data import open_dataset
from distributed.data.sources.img2dataset import find_shards, index_shards


@pytest.fixture
def shards(tmp_path, tar_shard, png):
    for i in range(2):
        members = [(f"{i}0.jpg", png()), (f"{i}0.json", b"{}"), (f"{i}0.txt", b"two\nlines are one caption")]
        tar_shard(tmp_path / "raw" / f"0000{i}.tar", members)
    (tmp_path / "raw" / "00000.parquet").touch()
    return tmp_path / "raw"


def test_folders_files_and_patterns_name_shards(shards, monkeypatch):
    files = [shards / "00000.tar", shards / "00001.tar"]
    assert find_shards([str(shards)]) == files
    assert find_shards([str(shards / "*1.tar"), str(files[1])]) == files[1:]
    monkeypatch.chdir(shards.parent)
    assert find_shards(["raw/*.tar", "raw"]) == files
    with pytest.raises(UserError, match="no shard"):
        find_shards([str(shards / "x*.tar")])
    with pytest.raises(UserError, match="are refused"):
        find_shards(["pipe:cat x.tar"])


def test_shards_are_indexed_where_they_lie(shards, tmp_path):
    before = {file: file.read_bytes() for file in shards.iterdir()}
    index_shards(tmp_path / "d", find_shards([str(shards)]), name="n", split="train")
    assert {file: file.read_bytes() for file in shards.iterdir()} == before
    assert sorted(file.name for file in (tmp_path / "d").iterdir()) == ["index.arrow", "manifest.json"]
    dataset = open_dataset(tmp_path / "d")
    assert [dataset.captions(row) for row in range(2)] == [["two lines are one caption"]] * 2


def test_a_truncated_shard_is_refused(shards, tmp_path):
    file = shards / "00001.tar"
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(UserError, match=r"00001\.tar: truncated .* fetch this shard again"):
        index_shards(tmp_path / "d", find_shards([str(shards)]), name="n", split="train")
