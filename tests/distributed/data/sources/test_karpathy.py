import json
import os
from collections import Counter
from pathlib import Path

import pytest

from allpairs.errors import UserError
from distributed.data import Position, open_dataset
from distributed.data.build import Incomplete
from distributed.data.sources import build_karpathy
from distributed.data.sources.karpathy import karpathy_splits
from tests.distributed.data.readers import train_reader


@pytest.mark.realdata
def test_a_karpathy_data_set_survives_the_road(tmp_path, karpathy_json, record_property):
    """Real emoji where ALLPAIRS_SHARED names them, otherwise the project's own JSON of the same schema."""
    shared = os.environ.get("ALLPAIRS_SHARED")
    if shared:
        folder = Path(shared) / "data" / "emoji"
        file, images = folder / "dataset.json", folder / "images"
    else:
        file, images = karpathy_json(tmp_path)
    record_property("source", str(file))
    build_karpathy(file, images=images, out=tmp_path / "out")
    entries = json.loads(file.read_text(encoding="utf-8"))["images"]
    for split in ("train", "val", "test"):
        wanted = [entry for entry in entries if entry["split"].replace("restval", "train") == split]
        dataset = open_dataset(tmp_path / "out" / split)
        assert len(dataset) == len(wanted)
        for row in range(0, len(wanted), 50):
            entry, sample = wanted[row], dataset.read(row)
            assert sample.data == (images / entry.get("filepath", "") / entry["filename"]).read_bytes()
            texts = [s.get("raw") or " ".join(s["tokens"]) for s in entry["sentences"]]
            assert sample.captions == [" ".join(text.split()) for text in texts]
    train = open_dataset(tmp_path / "out" / "train")
    reader = train_reader(train, global_batch=256, seed=0, image_size=32)
    ids = Counter(i for batch in reader.batches(Position(0)) for i in batch.image_ids.tolist())
    assert ids == Counter(range(len(train)))
    assert not reader.bad


def change(file, function):
    content = json.loads(file.read_text())
    function(content["images"][0])
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda entry: entry.update(split="trian"),
            r"images\[0\]\.split='trian' is not accepted: unknown split; did you mean 'train'",
        ),
        (lambda entry: entry.pop("sentences"), r"images\[0\]\.sentences: missing"),
        (lambda entry: entry.update(filename="../secret.png"), "leads out of the folder"),
        (lambda entry: entry.update(filename="a.gif"), r"filename='a\.gif' is not accepted: not one of png, jpg"),
        (lambda entry: entry.update(filename="gone.png"), r"gone\.png: no such image; .*--skip-incomplete"),
        (lambda entry: entry.update(sentences=[]), "no caption"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, karpathy_json, function, message):
    file, images = karpathy_json(tmp_path)
    change(file, function)
    with pytest.raises(UserError, match=message):
        [list(samples) for samples in karpathy_splits(file, images, Incomplete(skip=False))[1].values()]


def test_incomplete_samples_are_left_out_on_demand(tmp_path, karpathy_json):
    file, images = karpathy_json(tmp_path)
    change(file, lambda entry: entry.update(filename="gone.png"))
    incomplete = Incomplete(skip=True)
    _, splits = karpathy_splits(file, images, incomplete)
    assert [sample.key for sample in splits["train"]] == ["train2014/img_1", "img_4"]
    assert incomplete.counts == {"no such image": 1}
    assert incomplete.lines() == [f"1, no such image (and 2 captions): {images / 'gone.png'}"]


def test_other_files_are_refused(tmp_path, karpathy_json):
    file, images = karpathy_json(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        karpathy_splits(file, tmp_path / "none", Incomplete(skip=False))
    for text in ("[]", "{", '{"x": 1}'):
        file.write_text(text)
        with pytest.raises(UserError, match="not a Karpathy-schema JSON"):
            karpathy_splits(file, images, Incomplete(skip=False))
    with pytest.raises(UserError, match="No such file"):
        karpathy_splits(tmp_path / "none.json", images, Incomplete(skip=False))
