import io

import numpy as np
import pytest

from allpairs.errors import UserError
from distributed.data import Position, open_dataset
from distributed.data.build import Incomplete
from distributed.data.sources.regions import region_splits
from distributed.data.writer import write_split
from tests.distributed.data.readers import train_reader


def put(folder, stem, regions, captions):
    np.save(folder / f"{stem}_ims.npy", regions)
    (folder / f"{stem}_caps.txt").write_text("".join(f"caption {i}\n" for i in range(captions)))


@pytest.mark.parametrize("repeated", [1, 5])
def test_both_forms_give_each_image_once(tmp_path, repeated):
    regions = np.random.default_rng(0).random((6, 4, 3), dtype=np.float32)
    put(tmp_path, "train", np.repeat(regions, repeated, axis=0), 30)
    put(tmp_path, "dev", np.repeat(regions[:1], repeated, axis=0), 5)
    splits = region_splits(tmp_path, Incomplete(skip=False))
    assert sorted(splits) == ["train", "val"]
    samples = list(splits["train"])
    assert len(samples) == 6
    for number, sample in enumerate(samples):
        assert np.array_equal(np.load(io.BytesIO(sample.data)), regions[number])
        assert sample.captions == [f"caption {i}" for i in range(5 * number, 5 * number + 5)]


def test_regions_are_read_as_float32_batches(tmp_path):
    regions = np.random.default_rng(0).random((6, 4, 3))
    put(tmp_path, "train", regions, 30)
    write_split(
        tmp_path / "d",
        region_splits(tmp_path, Incomplete(skip=False))["train"],
        name="r",
        split="train",
        source={},
        kind="regions",
    )
    reader = train_reader(open_dataset(tmp_path / "d"), global_batch=6, seed=0, augment="crop")
    (batch,) = reader.batches(Position(0))
    assert batch.images.shape == (6, 4, 3)
    assert np.array_equal(batch.images.numpy(), regions.astype(np.float32)[batch.image_ids.numpy()])


@pytest.mark.parametrize(
    ("regions", "captions", "message"),
    [
        (np.zeros((6, 4, 3)), 7, "7 captions for 6 rows"),
        (np.zeros((6, 4)), 30, r"expected floats \[images, regions, features\]"),
        (np.zeros((6, 4, 3), int), 30, "expected floats"),
        (np.zeros((6, 0, 3)), 30, "none 0"),
        (np.array([{"a": 1}], dtype=object), 5, "not a plain array"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, regions, captions, message):
    put(tmp_path, "train", regions, captions)
    with pytest.raises(UserError, match=message):
        region_splits(tmp_path, Incomplete(skip=False))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no train_ims\.npy"):
        region_splits(tmp_path, Incomplete(skip=False))


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_features_that_training_cannot_use_are_refused_or_left_out(tmp_path, value):
    regions = np.ones((3, 4, 2))
    regions[1, 2, 0] = value
    put(tmp_path, "train", regions, 15)
    with pytest.raises(UserError, match=r"train_ims\.npy: row 1: non-finite regions; .*--skip-incomplete"):
        list(region_splits(tmp_path, Incomplete(skip=False))["train"])
    incomplete = Incomplete(skip=True)
    samples = list(region_splits(tmp_path, incomplete)["train"])
    assert [sample.key for sample in samples] == ["00000000", "00000002"]
    assert incomplete.counts == {"non-finite regions": 1}
