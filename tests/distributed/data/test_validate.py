import json
import struct
import zlib

import pytest

from distributed.data.validate import validate_folder


def check(folder, world=1, max_image_pixels=10_000):
    return validate_folder(folder, world=world, max_image_pixels=max_image_pixels)


def bomb() -> bytes:
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99)))
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_each_problem_is_counted_in_its_shard(tmp_path, tar_shard, png):
    good = [("a.png", png()), ("a.txt", b"x")]
    tar_shard(tmp_path / "0.tar", good)
    tar_shard(
        tmp_path / "1.tar",
        [
            ("b.png", png()),
            ("c.txt", b"x"),
            ("d.png", png()[:40]),
            ("d.txt", b"\n\n"),
            ("e.png", bomb()),
            ("e.txt", b"\xff"),
            ("f.npy", b"junk"),
            ("f.txt", b"x"),
            *good,
        ],
    )
    report = check(tmp_path)
    first, second = report.shards
    assert (first.samples, first.problems, first.faults) == (1, {}, [])
    assert second.samples == 6
    assert second.problems == {
        "missing text": 1,
        "missing image": 1,
        "undecodable image": 1,
        "empty captions": 1,
        "oversized image": 1,
        "text not UTF-8": 1,
        "undecodable regions": 1,
        "duplicate keys": 1,
    }
    assert second.examples["missing image"] == "c"
    assert second.examples["duplicate keys"] == "a (also in 0.tar)"
    assert not report.ok
    json.dumps(report.as_dict())


def test_a_sound_data_set_passes(numbered, tmp_path):
    numbered([3, 4])
    report = check(tmp_path / "indexed")
    assert report.ok
    assert report.samples == 7
    assert report.notes == []


def test_changed_bytes_are_noticed(numbered, tmp_path):
    numbered([3, 4])
    shard = tmp_path / "shards" / "00000.tar"
    content = bytearray(shard.read_bytes())
    content[520] ^= 1  # inside the first picture's signature
    shard.write_bytes(content)
    report = check(tmp_path / "indexed")
    assert report.shards[0].faults == ["not the bytes the manifest was written for"]
    assert report.shards[0].problems == {"undecodable image": 1}
    assert report.shards[1].faults == []


def test_truncated_and_missing_shards_are_noticed(numbered, tmp_path):
    numbered([3, 4])
    shards = tmp_path / "shards"
    (shards / "00000.tar").write_bytes((shards / "00000.tar").read_bytes()[:3000])
    (shards / "00001.tar").unlink()
    cut, gone = check(tmp_path / "indexed").shards
    assert any("truncated" in fault for fault in cut.faults)
    assert any("the manifest says 3" in fault for fault in cut.faults)
    assert gone.faults == ["does not exist"]


def test_a_changed_index_is_noticed(numbered, tmp_path):
    numbered([3])
    index = tmp_path / "indexed" / "index.arrow"
    index.write_bytes(index.read_bytes().replace(b"k0001", b"k9999"))
    assert check(tmp_path / "indexed").faults == ["index.arrow is not the one the manifest was written with"]


@pytest.mark.parametrize(("world", "notes", "faults"), [(7, 0, 0), (3, 1, 0), (8, 1, 1)])
def test_evenness_for_a_planned_world(numbered, tmp_path, world, notes, faults):
    numbered([3, 4])
    report = check(tmp_path / "indexed", world=world)
    assert (len(report.notes), len(report.faults)) == (notes, faults)
