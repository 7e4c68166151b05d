import io
import tarfile

import pytest

from distributed.data.shards import Span, TruncatedShardError, split_name, walk_shard


def test_names_split_at_the_first_dot_of_the_last_part():
    assert split_name("a/b.c/key.seg.PNG") == ("a/b.c/key", "seg.png")
    assert split_name("key") == ("key", "")


def test_spans_point_at_the_bytes(tmp_path, tar_shard):
    file = tar_shard(
        tmp_path / "0.tar", [("a.png", b"image a"), ("a.txt", b"text"), ("x" * 150 + ".jpg", b"long name")]
    )
    content = file.read_bytes()

    def cut(span: Span) -> bytes:
        return content[span.offset : span.offset + span.size]

    first, second = walk_shard(file)
    assert (cut(first.image), first.suffix, cut(first.text)) == (b"image a", "png", b"text")
    assert (second.key, cut(second.image), second.text) == ("x" * 150, b"long name", None)


def test_a_doubled_key_is_two_samples(tmp_path, tar_shard):
    file = tar_shard(tmp_path / "0.tar", [("a.png", b"1"), ("a.txt", b"1"), ("a.png", b"2"), ("a.txt", b"2")])
    assert [sample.key for sample in walk_shard(file)] == ["a", "a"]


def test_links_and_folders_are_passed_over(tmp_path):
    file = tmp_path / "0.tar"
    with tarfile.open(file, "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("a.png", tarfile.SYMTYPE), ("a.txt", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            tar.addfile(info, io.BytesIO())
    (sample,) = walk_shard(file)
    assert sample.image is None


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 1024, 1536, 2048, 2060])
def test_every_cut_is_noticed(tmp_path, tar_shard, kept):
    # Blocks of 512: header a.png, data, header a.txt, data (2048 in all), then the end mark.
    file = tar_shard(tmp_path / "0.tar", [("a.png", b"1" * 300), ("a.txt", b"2" * 300)])
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(TruncatedShardError, match=r"0\.tar: truncated or damaged tar"):
        list(walk_shard(file))


def test_garbage_between_members_is_noticed(tmp_path, tar_shard):
    file = tar_shard(tmp_path / "0.tar", [("a.png", b"1" * 300), ("a.txt", b"2" * 300)])
    content = bytearray(file.read_bytes())
    content[1024:1536] = b"?" * 512
    file.write_bytes(content)
    with pytest.raises(TruncatedShardError, match="no end-of-archive mark at byte 1024"):
        list(walk_shard(file))


def test_a_compressed_shard_is_refused(tmp_path):
    file = tmp_path / "0.tar"
    with tarfile.open(file, "w:gz"):
        pass
    with pytest.raises(TruncatedShardError):
        list(walk_shard(file))
