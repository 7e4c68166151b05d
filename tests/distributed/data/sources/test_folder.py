import pytest

from allpairs.errors import UserError
from distributed.data.build import Incomplete, split_by_seed
from distributed.data.sources.folder import folder_splits


def put(folder, png, name, text="one\n\ntwo\n"):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png())
    if text is not None:
        file.with_suffix(".txt").write_text(text)


def listed(folder, skip=False, **splits):
    incomplete = Incomplete(skip=skip)
    parts = folder_splits(folder, incomplete, **{"seed": 0, "val": 0.0, "test": 0.0, **splits})
    return {split: list(samples) for split, samples in parts.items()}, incomplete.counts


def test_subfolders_are_the_splits(tmp_path, png):
    for name in ("train/b.png", "train/sub/a.v2.JPG", "val/c.webp"):
        put(tmp_path, png, name)
    parts, _ = listed(tmp_path)
    assert {split: [s.key for s in samples] for split, samples in parts.items()} == {
        "train": ["b", "sub/a_v2"],
        "val": ["c"],
    }
    assert parts["train"][1].suffix == "jpg"
    assert parts["train"][0].captions == ["one", "two"]
    assert parts["train"][0].data == png()


def test_seeded_splits_are_fractions_of_the_whole(tmp_path, png):
    for i in range(40):
        put(tmp_path, png, f"{i:02d}.png")
    keys = [
        {
            split: [s.key for s in samples]
            for split, samples in listed(tmp_path, seed=seed, val=0.1, test=0.25)[0].items()
        }
        for seed in (0, 0, 1)
    ]
    assert {split: len(names) for split, names in keys[0].items()} == {"train": 26, "val": 4, "test": 10}
    assert sorted(key for names in keys[0].values() for key in names) == [f"{i:02d}" for i in range(40)]
    assert keys[0] == keys[1] != keys[2]


def test_few_images_change_split_when_one_is_added():
    names = [f"n{i}" for i in range(200)]
    before = split_by_seed(names, seed=0, val=0.1, test=0.1)
    after = split_by_seed([*names, "new"], seed=0, val=0.1, test=0.1)
    assert len(set(before["train"]) ^ set(after["train"])) <= 3


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.1), (0.0, 1.2)])
def test_fractions_must_leave_something_to_train_on(val, test):
    with pytest.raises(UserError, match="together below 1"):
        split_by_seed(["a", "b"], seed=0, val=val, test=test)


@pytest.mark.parametrize(("text", "cause"), [(None, "no text file beside the image"), (" \n", "no caption")])
def test_incomplete_pairs(tmp_path, png, text, cause):
    put(tmp_path, png, "good.png")
    put(tmp_path, png, "bad.png", text)
    with pytest.raises(UserError, match=rf"bad\.\w+: {cause}"):
        listed(tmp_path)
    parts, counts = listed(tmp_path, skip=True)
    assert [sample.key for sample in parts["train"]] == ["good"]
    assert counts == {cause: 1}


def test_text_must_be_utf8(tmp_path, png):
    put(tmp_path, png, "bad.png")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"bad\.txt: text not UTF-8"):
        listed(tmp_path)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no image"):
        listed(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        listed(tmp_path / "none")
