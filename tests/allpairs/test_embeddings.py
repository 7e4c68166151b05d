"""The folder that training hands to evaluation."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError


def picture(kind="PNG", colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, kind)
    return buffer.getvalue()


def small(**changes):
    rng = np.random.default_rng(0)
    parts = {
        "images": rng.normal(size=(3, 4)),
        "captions": rng.normal(size=(5, 4)),
        "image_ids": [30, 10, 20],
        "caption_ids": [10, 10, 20, 30, 30],
        "image_keys": ["a", "b", "ü/c"],
        "texts": ["one", "two", "", "<four>", "fünf\n"],
        "thumbnails": [picture(), None, picture("JPEG")],
        "data_hash": "sha256:abc",
    }
    return EmbeddingSet(**(parts | changes))


def test_round_trip(tmp_path):
    written = small()
    folder = written.write(tmp_path / "embeddings" / "test")
    found = EmbeddingSet.read(folder)
    for name in ("images", "captions", "image_ids", "caption_ids"):
        assert getattr(found, name).dtype == getattr(written, name).dtype
        assert (getattr(found, name) == getattr(written, name)).all()
    for name in ("image_keys", "texts", "thumbnails", "split", "data_hash", "protocol"):
        assert getattr(found, name) == getattr(written, name)
    facts = {"split": "test", "data_hash": "sha256:abc", "protocol": "custom", "images": 3, "captions": 5, "dim": 4}
    assert json.loads((folder / "manifest.json").read_text()) == {"format": 2, "origin": asdict(written.origin)} | facts
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["test"]  # nothing half-written stays


def test_matrices_are_mapped_and_not_copied(tmp_path):
    found = EmbeddingSet.read(small().write(tmp_path / "test"))
    for matrix, name in ((found.images, "images"), (found.captions, "captions")):
        assert isinstance(matrix, np.memmap)
        assert Path(matrix.filename) == tmp_path / "test" / f"{name}.npy"
        assert not matrix.flags.writeable


def test_what_was_read_can_be_written_over_itself(tmp_path):
    folder = small().write(tmp_path / "test")
    found = EmbeddingSet.read(folder)
    before = found.images.copy()
    found.write(folder)
    assert (found.images == before).all()
    assert (EmbeddingSet.read(folder).images == before).all()


def test_writing_again_replaces(tmp_path):
    small().write(tmp_path / "test")
    small(texts=list("vwxyz"), thumbnails=[]).write(tmp_path / "test")
    found = EmbeddingSet.read(tmp_path / "test")
    assert found.texts == list("vwxyz")
    assert found.thumbnails == [None, None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_ids": [1, 2]}, "image_ids has 2 entries for 3"),
        ({"texts": ["one"]}, "texts has 1 entries for 5"),
        ({"thumbnails": [None]}, "thumbnails has 1 entries for 3"),
        ({"image_ids": [1, 2, 2]}, "distinct; id 2 occurs 2 times"),
        ({"captions": np.ones((5, 3))}, r"equally many columns, got shapes \[3, 4\] and \[5, 3\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        small(**changes)


def test_reading_says_what_is_missing(tmp_path):
    folder = small().write(tmp_path / "embeddings" / "test")
    with pytest.raises(UserError, match=r"no 'tset' in .*did you mean 'test'"):
        EmbeddingSet.read(folder.with_name("tset"))
    (folder / "captions.npy").unlink()
    with pytest.raises(UserError, match=r"captions.npy does not exist"):
        EmbeddingSet.read(folder)


def test_pickles_are_not_opened(tmp_path):
    folder = small().write(tmp_path / "test")

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    np.save(folder / "images.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"images.npy is not a .npy array of numbers"):
        EmbeddingSet.read(folder)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("manifest.json", b'{"format": 2,', "manifest.json, line 1, column"),
        ("manifest.json", b"[]", "not a manifest"),
        ("manifest.json", b'{"format": 99}', "not a manifest of embeddings in format 2"),
        ("manifest.json", b'{"format": 2, "images": 4, "captions": 5, "dim": 4}', "says images = 4, the files hold 3"),
        ("images.npy", b"", "images.npy is not a .npy array"),
        ("images.parquet", b"none", "images.parquet is not a Parquet file"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, said):
    folder = small().write(tmp_path / "test")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        EmbeddingSet.read(folder)


BROKEN = {
    r"images\[1\] holds a number that is not finite": ("images", np.array([[1, 2], [np.nan, 1], [0, 1]], np.float32)),
    r"captions\[0\] holds": ("captions", np.full((5, 2), np.inf, np.float32)),
    r"image_ids\[2\] = 9: no caption has this id": ("image_ids", np.array([4, 7, 9])),
    r"caption_ids\[4\] = 8: no image has this id": ("caption_ids", np.array([4, 7, 5, 5, 8])),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_match_is_named(message):
    sizes = {"images": np.ones((3, 2)), "captions": np.ones((5, 2))}
    ids = {"image_ids": np.array([4, 7, 5]), "caption_ids": np.array([4, 7, 5, 5, 4])}
    names = {"image_keys": ["a", "b", "c"], "texts": ["t"] * 5}
    EmbeddingSet(**sizes, **ids, **names).check_matches()
    field, value = BROKEN[message]
    with pytest.raises(UserError, match=message):
        EmbeddingSet(**(sizes | ids | names | {field: value})).check_matches()


def test_the_file_of_an_earlier_version_says_how_to_write_it_anew(tmp_path):
    (tmp_path / "old.safetensors").write_bytes(b"old")
    with pytest.raises(UserError, match=r"is a file; accepted: a folder that `python -m distributed\.embed` writes"):
        EmbeddingSet.read(tmp_path / "old.safetensors")


@pytest.mark.parametrize("there", ["notes.txt", "images.npy"])
def test_a_folder_of_something_else_is_never_replaced(tmp_path, there):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / there).write_text("mine")
    with pytest.raises(UserError, match="exists and holds no embeddings: it is not replaced"):
        small().write(tmp_path / "other")
    assert (tmp_path / "other" / there).read_text() == "mine"
    (tmp_path / "empty").mkdir()
    small().write(tmp_path / "empty")
