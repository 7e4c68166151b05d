"""What strangers' files may hold, and what the commands say to it: one line, the exit code, and nothing run or written.

An exception that no command turned into a line would fail these tests: they call the commands in this process.
"""

import io
import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distributed.data import Position, open_dataset
from distributed.data.images import decode_image
from distributed.data.sources.emoji import ANNOTATIONS
from distributed.data.writer import write_manifest
from tests.distributed.data.readers import train_reader

DEEP = 5000
LONG = "n" * 300 + ".png"


class Executed:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def refused(result, *fragments, line=True):
    """The command ended with 2 and one line that has the fragments."""
    code, _, errors = result
    assert code == 2, errors
    assert all(fragment in errors for fragment in fragments), errors
    assert not line or errors.count("\n") == 1, errors


def validated(command, folder) -> list[str]:
    """Return what `validate` has against one folder."""
    file = folder.parent / "report.json"
    code, _, _ = command("validate", folder, "--json", file)
    (report,) = json.loads(file.read_text())
    faults = report["faults"] + [fault for shard in report["shards"] for fault in shard["faults"]]
    assert code == (0 if report["ok"] else 1)
    return faults


# A place of the first entry of a Karpathy JSON, the JSON text put there, and what is said.
KARPATHY = [
    (("split",), "5", "images[0].split=5 is not accepted: input should be a valid string"),
    (("split",), "null", "images[0].split=None is not accepted"),
    (("split",), '["train"]', "images[0].split=['train'] is not accepted"),
    (("split",), '""', "images[0].split='' is not accepted: unknown split"),
    (("sentences",), "null", "images[0].sentences=None is not accepted: input should be a valid array"),
    (("sentences",), '"a caption"', "images[0].sentences='a caption' is not accepted"),
    (("sentences",), '["a caption"]', "images[0].sentences[0]='a caption' is not accepted"),
    (("sentences",), "{}", "images[0].sentences={} is not accepted"),
    (("sentences",), "[]", "img.0.png: no caption; complete it"),
    (("sentences", 0, "raw"), "7", "images[0].sentences[0].raw=7 is not accepted"),
    (("sentences", 0, "raw"), '["a"]', "images[0].sentences[0].raw=['a'] is not accepted"),
    (("sentences", 0, "tokens"), '"two words"', "images[0].sentences[0].tokens='two words' is not accepted"),
    (("sentences", 0, "tokens"), "[1, 2]", "images[0].sentences[0].tokens[0]=1 is not accepted"),
    (("sentences", 0, "tokens"), "{}", "images[0].sentences[0].tokens={} is not accepted"),
    (("filename",), "5", "images[0].filename=5 is not accepted"),
    (("filename",), "null", "images[0].filename=None is not accepted"),
    (("filename",), '""', "images[0].filename='' is not accepted"),
    (("filename",), json.dumps(LONG), "n.png: no such image"),
    (("filename",), '"a\\u0000b.png"', "leads out of the folder of images"),
    (("filename",), '"a\\ud83d.png"', "invalid JSON: "),
    (("filename",), '"../secret.png"', "images[0].filename='../secret.png' is not accepted: leads out of"),
    (("filename",), '"/etc/x.png"', "images[0].filename='/etc/x.png' is not accepted: leads out of"),
    (("filepath",), "null", "images[0].filepath=None is not accepted"),
    (("filepath",), "[]", "images[0].filepath=[] is not accepted"),
    (("filepath",), '"../.."', "images[0].filepath='../..' is not accepted: leads out of"),
    (("split",), "[" * DEEP + "]" * DEEP, "invalid JSON: recursion limit exceeded"),
    (("sentences",), '[{"raw": ' * DEEP + "1" + "}]" * DEEP, "invalid JSON: recursion limit exceeded"),
    (("imgid",), "9" * 5000, "not a Karpathy-schema JSON"),
]


@pytest.mark.parametrize("case", KARPATHY)
def test_karpathy_entries_of_another_type(command, tmp_path, karpathy_json, case):
    place, value, message = case
    file, images = karpathy_json(tmp_path)
    content = json.loads(file.read_text())
    node = content["images"][0]
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = "@here@"
    file.write_text(json.dumps(content).replace('"@here@"', value))
    (tmp_path / "secret.png").write_bytes(b"secret")
    refused(command("build", "karpathy", file, "--images", images, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid JSON: EOF"),
        ("null", "None is not accepted"),
        ("5", "5 is not accepted"),
        ("[]", "[] is not accepted"),
        ("{}", "images: missing"),
        ('{"images": null}', "images=None is not accepted"),
        ('{"images": "all"}', "images='all' is not accepted"),
        ('{"images": {}}', "images={} is not accepted"),
        ('{"images": []}', "images=[] is not accepted: list should have at least 1 item"),
        ('{"images": [3, 4, 5]}', "images[0]=3 is not accepted: input should be an object (and 2 more mistakes)"),
        ('{"images": [{}]}', "images[0].filename: missing"),
        ('{"images": ' * DEEP, "invalid JSON: recursion limit exceeded"),
        ('{"images": [' + "1" * 200_000 + "]}", "not a Karpathy-schema JSON"),
        ("\udcff\udcfe{", "invalid JSON"),
    ],
)
def test_karpathy_files_of_another_shape(command, tmp_path, karpathy_json, text, message):
    file, images = karpathy_json(tmp_path)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    result = command("build", "karpathy", file, "--images", images, "--out", tmp_path / "out")
    refused(result, "dataset.json: not a Karpathy-schema JSON: ", message)
    assert len(result[2]) < 1000
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_place_of_a_file(command, tmp_path, karpathy_json, numbered):
    file, images = karpathy_json(tmp_path)
    file.unlink()
    file.mkdir()
    arguments = ("build", "karpathy", file, "--images", images, "--out", tmp_path / "out")
    refused(command(*arguments), "dataset.json: cannot be read (Is a directory)")
    numbered([3])
    manifest = tmp_path / "indexed" / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    for name in ("validate", "describe"):
        refused(command(name, tmp_path / "indexed"), "manifest.json: cannot be read (Is a directory)")


MANIFEST = [
    (("samples",), "three", "samples='three' is not accepted: input should be a valid integer"),
    (("samples",), "3", "samples='3' is not accepted"),
    (("samples",), 3.0, "samples=3.0 is not accepted"),
    (("samples",), True, "samples=True is not accepted"),
    (("samples",), None, "samples=None is not accepted"),
    (("samples",), -3, "samples=-3 is not accepted"),
    (("samples",), 7, "7 samples in all, but its shards add up to another number"),
    (("captions",), 7, "7 captions in all, but its shards add up to another number"),
    (("format",), "2", "format='2' is not accepted"),
    (("format",), 1, "format=1 is not accepted: this version reads format 2; build the data again"),
    (("name",), 5, "name=5 is not accepted: input should be a valid string"),
    (("split",), ["train"], "split=['train'] is not accepted"),
    (("source",), "a build", "source='a build' is not accepted"),
    (("kind",), "video", "kind='video' is not accepted: input should be 'image' or 'regions'"),
    (("text",), "words", "text='words' is not accepted: input should be 'lines' or 'whole'"),
    (("index_sha256",), "0", "index_sha256='0' is not accepted"),
    (("index_bytes",), 2**80, "is not accepted: input should be less than"),
    (("shards",), {}, "shards={} is not accepted"),
    (("shards",), [1], "shards[0]=1 is not accepted"),
    (("shards", 0, "file"), 5, "shards[0].file=5 is not accepted"),
    (("shards", 0, "file"), "", "shards[0].file='' is not accepted"),
    (("shards", 0, "bytes"), "many", "shards[0].bytes='many' is not accepted"),
    (("shards", 0, "surprise"), 1, "shards[0].surprise: unknown key (value 1)"),
    (("surprise",), 1, "surprise: unknown key (value 1)"),
]


@pytest.mark.parametrize("case", MANIFEST)
def test_manifests_of_another_type(command, tmp_path, numbered, case):
    place, value, message = case
    numbered([3])
    file = tmp_path / "indexed" / "manifest.json"
    content = json.loads(file.read_text())
    node = content
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    file.write_text(json.dumps(content))
    for name in ("validate", "describe"):
        refused(command(name, tmp_path / "indexed"), "manifest.json: ", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid JSON"),
        ("[]", "[] is not accepted"),
        ("[" * DEEP + "]" * DEEP, "recursion limit exceeded"),
        ('{"source": ' * DEEP, "recursion limit exceeded"),
        ("9" * 5000, "not a data manifest"),
        ('{"format": ' + "9" * 5000 + "}", "not a data manifest"),
    ],
)
def test_manifests_of_another_shape(command, tmp_path, numbered, text, message):
    numbered([3])
    (tmp_path / "indexed" / "manifest.json").write_text(text)
    for name in ("validate", "describe"):
        refused(command(name, tmp_path / "indexed"), "manifest.json: not a data manifest: ", message)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_shards_with_names_that_no_file_has(command, tmp_path, numbered, name):
    refused(command("describe", tmp_path / ("n" * 300)), "no such folder")
    numbered([3])
    file = tmp_path / "indexed" / "manifest.json"
    content = json.loads(file.read_text())
    content["shards"][0]["file"] = name
    file.write_text(json.dumps(content))
    for verb in ("validate", "describe"):
        refused(command(verb, tmp_path / "indexed"), f"shard {name!r}: no file has such a name")


# -- pictures and regions: what validate counts is what training drops, under the same name --


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def text_bomb(png: bytes, *, at_the_end: bool, eight_mebibytes: int = 1) -> bytes:
    """A picture whose text chunk unpacks to more than any text has."""
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(eight_mebibytes * 2**23)))
    place = len(png) - 12 if at_the_end else 33
    return png[:place] + bomb + png[place:]


def jpeg(**options) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", **options)
    return stream.getvalue()


def npy(array, header: dict | None = None, version: bytes = b"\x01\x00") -> bytes:
    stream = io.BytesIO()
    if header is None:
        np.save(stream, array, allow_pickle=True)
        return stream.getvalue()
    text = str(header) if isinstance(header, dict) else header
    padded = text.encode().ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(padded)) + padded + array.tobytes()


def header(shape, descr="<f4", fortran=False):
    return {"descr": descr, "fortran_order": fortran, "shape": shape}


FLOATS = np.ones((3, 4), np.float32)


def with_value(value, dtype=np.float32):
    regions = np.ones((3, 4), dtype)
    regions[1, 2] = value
    return npy(regions)


REGIONS = {
    "negative shape": (npy(FLOATS, header((-3, -4))), "undecodable regions"),
    "one negative length": (npy(FLOATS, header((-1, 4))), "undecodable regions"),
    "huge shape": (npy(FLOATS, header((2**62, 4))), "undecodable regions"),
    "integers": (npy(np.ones((3, 4), np.int64)), "undecodable regions"),
    "complex": (npy(np.ones((3, 4), np.complex64)), "undecodable regions"),
    "three dimensions": (npy(np.ones((3, 4, 1), np.float32)), "undecodable regions"),
    "a structure": (npy(np.zeros((3, 4), [("a", "<f4")])), "undecodable regions"),
    "objects": (npy(FLOATS, header((3, 4), "|O")), "undecodable regions"),
    "nested header": (npy(FLOATS, "(" * 900 + ")" * 900), "undecodable regions"),
    "no header": (b"\x93NUMPY\x01\x00", "undecodable regions"),
    "later version": (npy(FLOATS, header((3, 4)), version=b"\x09\x00"), "undecodable regions"),
    "no bytes": (b"", "undecodable regions"),
    "no regions": (npy(np.ones((0, 4), np.float32)), "empty regions"),
    "no features": (npy(np.ones((3, 0), np.float32)), "empty regions"),
    "nan": (with_value(np.nan), "non-finite regions"),
    "infinite": (with_value(-np.inf), "non-finite regions"),
    "overflowing": (with_value(1e300, np.float64), "non-finite regions"),
}
PICTURES = {
    "text bomb before the pixels": (lambda png: text_bomb(png, at_the_end=False), "undecodable image"),
    "text bomb after the pixels": (lambda png: text_bomb(png, at_the_end=True), "undecodable image"),
    "many texts": (lambda png: png[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000))) * 99 + png[33:],
                   "undecodable image"),
    "cut": (lambda png: png[:-30], "undecodable image"),
    "nothing": (lambda png: b"", "undecodable image"),
    "cut JPEG": (lambda png: jpeg()[:-400], "undecodable image"),
    "cut progressive JPEG": (lambda png: jpeg(progressive=True)[:-400], "undecodable image"),
    "regions": (lambda png: npy(FLOATS), "undecodable image"),
    "pickle": (lambda png: pickle.dumps({"a": 1}), "undecodable image"),
}  # fmt: skip


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("case", REGIONS)
def test_bad_regions_have_one_verdict_everywhere(command, tmp_path, tar_shard, case):
    data, cause = REGIONS[case]
    good = [(f"g{i}.{suffix}", part) for i in range(20) for suffix, part in (("npy", npy(FLOATS)), ("txt", b"x"))]
    shard = tar_shard(tmp_path / "d" / "0.tar", [*good, ("bad.npy", data), ("bad.txt", b"x")])
    check_verdict(command, shard, cause, kind="regions")


@pytest.mark.parametrize("case", PICTURES)
def test_bad_pictures_have_one_verdict_everywhere(command, tmp_path, tar_shard, png, case):
    make, cause = PICTURES[case]
    good = [(f"g{i}.{suffix}", part) for i in range(20) for suffix, part in (("png", png((i, 0, 0))), ("txt", b"x"))]
    shard = tar_shard(tmp_path / "d" / "0.tar", [*good, ("bad.png", make(png())), ("bad.txt", b"x")])
    check_verdict(command, shard, cause)


def check_verdict(command, shard, cause, kind="image"):
    about = {"name": "d", "split": "train", "source": {}, "kind": kind, "text": "lines", "relative": True}
    write_manifest(shard.parent, [shard], **about)
    code, text, _ = command("validate", shard.parent)
    assert code == 1
    assert f"{cause}: first in 0.tar: bad\n" in text
    for size in (8, 200):
        reader = train_reader(open_dataset(shard.parent), global_batch=21, seed=0, image_size=size, max_bad_fraction=1)
        (batch,) = reader.batches(Position(0))
        assert reader.bad == {cause: 1}
        assert "bad" not in batch.keys
    assert command("describe", shard.parent)[0] == 0


def test_a_pickle_is_never_run(command, tmp_path, tar_shard):
    mark = tmp_path / "executed"
    objects = np.empty((1, 1), dtype=object)
    objects[0, 0] = Executed(mark)
    evil = npy(objects)
    tar_shard(tmp_path / "raw" / "0.tar", [("a.npy", evil), ("a.txt", b"x"), ("b.npy", pickle.dumps(Executed(mark)))])
    assert command("validate", tmp_path / "raw")[0] == 1
    for content in (evil, pickle.dumps(Executed(mark)), b"PK\x03\x04 an archive", npy(FLOATS, header((-3, -4)))):
        (tmp_path / "train_ims.npy").write_bytes(content)
        (tmp_path / "train_caps.txt").write_text("x\n" * 5)
        refused(command("build", "regions", tmp_path, "--out", tmp_path / "out"), "train_ims.npy: not a plain array")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(Executed(mark)))
    assert mark.exists(), "it would have left its mark"


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_a_changed_byte_of_the_index(command, tmp_path, numbered, place):
    numbered([3, 4])
    file = tmp_path / "indexed" / "index.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) * place // 100] ^= 64
    file.unlink()  # the one that is mapped stays as it was
    file.write_bytes(content)
    refused(command("describe", tmp_path / "indexed"), "index.arrow: ", "build the data again")
    assert "index.arrow is not the one the manifest was written with" in validated(command, tmp_path / "indexed")


def test_regions_of_several_shapes_are_a_fault(command, tmp_path, tar_shard):
    shapes = [(3, 4), (3, 4), (3, 9), (3, 4)]
    members = [
        (f"{i}.{suffix}", data)
        for i, shape in enumerate(shapes)
        for suffix, data in (("npy", npy(np.full(shape, i, np.float32))), ("txt", b"x"))
    ]
    tar_shard(tmp_path / "raw" / "0.tar", members)
    (fault,) = validated(command, tmp_path / "raw")
    assert fault.endswith("regions [3, 4] in 3 samples (first 0.tar: 0), regions [3, 9] in 1 samples (first 0.tar: 2)")


# -- tar files --


def members(png, names):
    return [(name, png((i, 0, 0)) if name.endswith("png") else b"x") for i, name in enumerate(names)]


@pytest.fixture
def two_pairs(tmp_path, tar_shard, png):
    return tar_shard(tmp_path / "raw" / "0.tar", members(png, ["a.png", "a.txt", "b.png", "b.txt"]))


def test_a_tar_without_members(command, tmp_path, tar_shard, png):
    tar_shard(tmp_path / "raw" / "0.tar", [])
    assert "holds no sample" in validated(command, tmp_path / "raw")
    build = ("build", "img2dataset", tmp_path / "raw", "--out", tmp_path / "out", "--split", "train")
    refused(command(*build), "0.tar: nothing to build, no sample in it")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("garbage", "message"),
    [(b"\xff" * 512, "no end-of-archive mark"), (bytes(512), "data after the end-of-archive mark")],
)
def test_garbage_in_the_middle_of_a_tar(command, tmp_path, two_pairs, garbage, message):
    shard = two_pairs
    content = bytearray(shard.read_bytes())
    content[2048:2560] = garbage  # the header of b.png
    shard.write_bytes(content)
    assert any(message in fault for fault in validated(command, tmp_path / "raw"))
    build = ("build", "img2dataset", tmp_path / "raw", "--out", tmp_path / "out", "--split", "train")
    refused(command(*build), "0.tar: truncated or damaged tar", message)


@pytest.mark.parametrize("size", [b"-0000000001\0", b"\xff" * 12, b"9" * 11 + b"\0"])
def test_a_member_of_an_impossible_size(command, tmp_path, two_pairs, size):
    shard = two_pairs
    content = bytearray(shard.read_bytes())
    content[1024 + 124 : 1024 + 136] = size
    content[1024 + 148 : 1024 + 156] = b" " * 8
    content[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(content[1024:1536])
    shard.write_bytes(content)
    assert any("damaged tar" in fault for fault in validated(command, tmp_path / "raw"))


def test_member_names_that_are_not_utf8_are_readable_keys(command, tmp_path, tar_shard, png):
    names = ["caf\udce9.png", "caf\udce9.txt"]
    tar_shard(tmp_path / "raw" / "0.tar", members(png, names))
    build = ("build", "img2dataset", tmp_path / "raw", "--out", tmp_path / "out", "--split", "train")
    assert command(*build)[0] == 0
    dataset = open_dataset(tmp_path / "out" / "train")
    assert (dataset.key(0), dataset.captions(0)) == ("caf\\xe9", ["x"])
    assert command("validate", tmp_path / "out" / "train")[0] == 0
    assert command("describe", tmp_path / "out" / "train")[0] == 0


def test_captions_and_keys_command_no_terminal(command, tmp_path, png):
    """Escape sequences are shown; so are the brackets that the tables would take for styles."""
    (tmp_path / "pairs" / "train").mkdir(parents=True)
    name = "red\x1b[31m[bold]"
    (tmp_path / "pairs" / "train" / f"{name}.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "pairs" / "train" / f"{name}.txt").write_text("[/red] \x1b[2J fox\n")
    assert command("build", "folder", tmp_path / "pairs", "--out", tmp_path / "out")[0] == 0
    for verb in ("validate", "describe"):
        code, out, _ = command(verb, tmp_path / "out" / "train")
        assert code == 0
        assert "\x1b" not in out
    assert "red\\x1b[31m[bold]" in out
    assert "[/red] \\x1b[2J fox" in out


# -- folders --


@pytest.fixture
def folder(tmp_path, png):
    for i in range(4):
        for split in ("train", "test"):
            file = tmp_path / "pairs" / split / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png((i, len(split), 0)))
            file.with_suffix(".txt").write_text(f"{split} {i}\n")
    return tmp_path / "pairs"


def test_file_names_that_are_not_utf8(command, tmp_path, folder, png):
    for suffix, data in ((b".png", png((9, 9, 9))), (b".txt", b"x")):
        Path(os.fsdecode(os.fsencode(folder / "train") + b"/caf\xe9" + suffix)).write_bytes(data)
    arguments = ("build", "folder", folder, "--out", tmp_path / "out")
    refused(command(*arguments), "caf\\xe9.png: its name is not UTF-8; complete it, or leave")
    code, text, _ = command(*arguments, "--skip-incomplete")
    assert code == 0
    assert "left out: 1, its name is not UTF-8 (and 1 caption): " in text
    assert "caf\\xe9.png" in text
    assert len(open_dataset(tmp_path / "out" / "train")) == 4


def test_folders_whose_name_is_not_utf8(command, tmp_path, folder, tar_shard, png):
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.rename(strange)
    assert command("build", "folder", strange, "--out", tmp_path / "out")[0] == 0
    assert open_dataset(tmp_path / "out" / "train").manifest.name == "caf\\xe9"
    for out in (strange, strange / "out"):
        refused(command("build", "folder", strange, "--out", out), "caf\\xe9", "a name that is not UTF-8; rename it")
    (tmp_path / "out").rename(strange / "out")
    refused(command("describe", strange / "out"), "caf\\xe9/out/train: a name that is not UTF-8")
    assert command("validate", strange / "out", "--json", tmp_path / "report.json")[0] == 0
    assert "caf\\\\xe9" in (tmp_path / "report.json").read_text()
    tar_shard(strange / "raw" / "0.tar", members(png, ["a.png", "a.txt"]))
    result = command("build", "img2dataset", strange / "raw", "--out", tmp_path / "out", "--split", "train")
    refused(result, "caf\\xe9/raw/0.tar: a name that is not UTF-8")


@pytest.mark.parametrize("linked", ["0.png", "0.txt"])
def test_links_out_of_the_folder_are_refused(command, tmp_path, folder, png, linked):
    secret = tmp_path / f"secret{Path(linked).suffix}"
    secret.write_bytes(png((1, 2, 3)) if linked == "0.png" else b"a secret")
    (folder / "train" / linked).unlink()
    (folder / "train" / linked).symlink_to(secret)
    arguments = ("build", "folder", folder, "--out", tmp_path / "out")
    for more in ((), ("--skip-incomplete",)):
        refused(command(*arguments, *more), f"{linked}: a link that leads out of", "--follow-symlinks")
        assert not (tmp_path / "out").exists()
    assert command(*arguments, "--follow-symlinks")[0] == 0
    assert len(open_dataset(tmp_path / "out" / "train")) == 4


def test_links_inside_the_folder_and_a_linked_folder_are_fine(command, tmp_path, folder):
    (folder / "train" / "9.png").symlink_to(folder / "train" / "0.png")
    (folder / "train" / "9.txt").symlink_to("0.txt")
    (tmp_path / "link").symlink_to(folder)
    assert command("build", "folder", tmp_path / "link", "--out", tmp_path / "out")[0] == 0


def test_links_out_of_the_folder_of_images_are_refused(command, tmp_path, karpathy_json, png):
    file, images = karpathy_json(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (images / "train2014").rename(tmp_path / "elsewhere" / "train2014")
    (images / "train2014").symlink_to(tmp_path / "elsewhere" / "train2014")
    arguments = ("build", "karpathy", file, "--images", images, "--out", tmp_path / "out")
    refused(command(*arguments), "img.1.png: a link that leads out of", "--follow-symlinks")
    assert not (tmp_path / "out").exists()
    assert command(*arguments, "--follow-symlinks")[0] == 0


def test_an_output_that_cannot_be_written(command, tmp_path, folder):
    (tmp_path / "file").write_text("")
    refused(command("build", "folder", folder, "--out", tmp_path / "file" / "out"), "--out", "cannot be built")
    refused(command("build", "folder", folder, "--out", tmp_path / ("n" * 300)), "--out", "cannot be built")


@pytest.mark.parametrize("split", ["", ".", "..", "a/b", "a\0b", "n" * 300])
def test_splits_that_are_no_names(command, tmp_path, tar_shard, png, split):
    tar_shard(tmp_path / "raw" / "0.tar", members(png, ["a.png", "a.txt"]))
    arguments = ("build", "img2dataset", tmp_path / "raw", "--out", tmp_path / "out", f"--split={split}")
    refused(command(*arguments), "a plain name")
    assert not (tmp_path / "out").exists()


# -- what is named although each sample can be used --


def test_what_was_left_out_is_named(command, tmp_path, folder, png):
    for i in range(7):
        (folder / "train" / f"lonely{i}.png").write_bytes(png((i, 9, 9)))
    (folder / "train" / "README.txt").write_text("no caption of any picture")
    (folder / "train" / "orphan.txt").write_text("a caption without a picture\nand another")
    code, text, _ = command("build", "folder", folder, "--out", tmp_path / "out", "--skip-incomplete")
    assert code == 0
    (line,) = [line for line in text.splitlines() if "no text file" in line]
    assert line.startswith("left out: 7, no text file beside the image: ")
    assert [f"lonely{i}.png" in line for i in range(7)] == [True] * 5 + [False] * 2
    assert line.endswith(", …")
    assert "left out: 2, text file without an image beside it (and 3 captions): " in text
    assert "orphan.txt" in text


def test_repeated_pictures_and_wordless_captions_are_named(command, tmp_path, folder, png):
    (folder / "train" / "9.png").write_bytes((folder / "train" / "1.png").read_bytes())
    (folder / "train" / "9.txt").write_text("?!\n…\nthe same again\n")
    (folder / "test" / "8.png").write_bytes((folder / "train" / "0.png").read_bytes())
    (folder / "test" / "8.txt").write_text("8\n")
    code, text, _ = command("build", "folder", folder, "--out", tmp_path / "out")
    assert code == 0
    repeated = "1 of 5 pictures of train repeat an earlier one (1 = 9)"
    wordless = "2 of 7 captions of train have no word, only punctuation (9: '?!', 9: '…')"
    shared = "1 of 5 pictures of test are in train too (0 = 8)"
    assert all(f"note: {line}" in text for line in (repeated, wordless, shared))
    code, text, _ = command("validate", tmp_path / "out")
    text = " ".join(text.split())
    assert code == 1
    assert all(line in text for line in (f"note: {repeated}", f"note: {wordless}", f"fault: {shared}"))
    for split in ("train", "test"):
        assert command("validate", tmp_path / "out" / split)[0] == 0


def test_a_split_built_later_is_compared_with_those_that_are_there(command, tmp_path, tar_shard, png):
    for split in ("train", "test"):
        tar_shard(tmp_path / split / "0.tar", [(f"{split}.png", png()), (f"{split}.txt", b"x")])
        build = ("build", "img2dataset", tmp_path / split, "--out", tmp_path / "out", "--split", split)
        code, text, _ = command(*build)
        assert code == 0
        assert ("1 of 1 pictures of test are in train too (train = test)" in text) == (split == "test")


def test_a_source_with_nothing_is_refused(command, tmp_path, folder):
    for file in (folder / "test").glob("*.txt"):
        file.unlink()
    arguments = ("build", "folder", folder, "--out", tmp_path / "out", "--skip-incomplete")
    refused(command(*arguments), "the split 'test' of 'pairs' has no samples")
    assert not (tmp_path / "out").exists()


# -- other sources --


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "[] is not accepted: input should be an object"),
        ("{", "invalid JSON"),
        ('{"a": ' * DEEP, "recursion limit exceeded"),
        ('{"annotations": 3}', "annotations=3 is not accepted"),
        ('{"annotations": {"annotations": []}}', "annotations.annotations=[] is not accepted"),
        ('{"annotations": {"annotations": {"x": null}}}', "annotations.annotations.x=None is not accepted"),
        ('{"annotations": {"annotations": {"x": {"tts": "wave"}}}}', "annotations.annotations.x.tts='wave' is not"),
        ('{"annotations": {"annotations": {"x": {"tts": [1]}}}}', "annotations.annotations.x.tts[0]=1 is not"),
        ("{}", "no drawing emoji_u*.png that CLDR has a name for"),
    ],
)
def test_annotations_of_another_shape(command, tmp_path, png, text, message):
    (tmp_path / "noto" / "png" / "72").mkdir(parents=True)
    (tmp_path / "noto" / "png" / "72" / "emoji_u1f44b.png").write_bytes(png())
    for relative in ANNOTATIONS:
        file = tmp_path / "cldr" / relative
        file.parent.mkdir(parents=True)
        file.write_text(text)
    arguments = ("--noto", tmp_path / "noto", "--cldr", tmp_path / "cldr", "--out", tmp_path / "out")
    refused(command("build", "emoji", *arguments), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("captions", "message"),
    [(b"caf\xe9\n" * 5, "train_caps.txt: not UTF-8"), (None, "train_caps.txt: cannot be read (No such file")],
)
def test_captions_of_regions_that_cannot_be_read(command, tmp_path, captions, message):
    np.save(tmp_path / "train_ims.npy", np.ones((1, 3, 4)))
    if captions is not None:
        (tmp_path / "train_caps.txt").write_bytes(captions)
    refused(command("build", "regions", tmp_path, "--out", tmp_path / "out"), message)


def test_a_picture_of_one_line_of_pixels_takes_no_more_memory_than_another(png):
    line = png((7, 8, 9), (1, 40_000))
    pixels = decode_image(line, 64, 50_000)  # resized whole, it would have 64 × 2,560,000 pixels
    assert pixels.shape == (3, 64, 64)
    assert np.array_equal(pixels[:, 5, 5], [7, 8, 9])
