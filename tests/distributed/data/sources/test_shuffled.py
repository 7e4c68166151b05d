import numpy as np

from distributed.data import open_dataset
from distributed.data.__main__ import app
from distributed.data.manifest import Manifest
from distributed.data.sources.shuffled import caption_sources, note_of


def test_a_share_of_the_training_captions_changes_places(tiny, tmp_path, in_process):
    data = in_process(app)
    for out, seed in (("a", 0), ("again", 0), ("b", 1)):
        code, _, _ = data("build", "shuffled", tiny, "--fraction", 0.4, "--seed", seed, "--out", tmp_path / out)
        assert code == 0
    before, after = (list(open_dataset(root / "train").captions_by_key()) for root in (tiny, tmp_path / "a"))
    assert [key for key, _ in after] == [key for key, _ in before]
    assert [len(captions) for _, captions in after] == [len(captions) for _, captions in before]
    old, new = ([caption for _, captions in found for caption in captions] for found in (before, after))
    assert sorted(old) == sorted(new)
    moved = sum(one != other for one, other in zip(old, new, strict=True))
    assert 0.35 * len(old) < moved <= round(0.4 * len(old))
    pictures = [[open_dataset(root / "train").read(row).data for row in (0, 50)] for root in (tiny, tmp_path / "a")]
    assert pictures[0] == pictures[1]
    for split in ("val", "test"):
        copied = open_dataset(tmp_path / "a" / split).captions_by_key()
        assert list(copied) == list(open_dataset(tiny / split).captions_by_key())
    same = (tmp_path / "again/train/manifest.json").read_bytes()
    assert (
        same == (tmp_path / "a/train/manifest.json").read_bytes() != (tmp_path / "b/train/manifest.json").read_bytes()
    )


def test_it_says_what_it_is(tiny, tmp_path, in_process):
    data = in_process(app)
    data("build", "shuffled", tiny, "--fraction", 0.25, "--out", tmp_path / "out")
    _, shown, _ = data("describe", tmp_path / "out/train")
    assert "25 % of training captions shuffled" in shown
    manifest = Manifest.read(tmp_path / "out/train")
    elsewhere = manifest.source["captions_of_other_images"]
    note = f"25 % of the training captions were shuffled for an experiment: {elsewhere} of 206 stand with another image"
    assert note_of(manifest) == note
    assert note_of(Manifest.read(tmp_path / "out/val")) is None
    assert note_of(Manifest.read(tiny / "train")) is None


def test_mistakes_are_one_line(tiny, tmp_path, in_process):
    data = in_process(app)

    def mistake(folder, fraction):
        code, _, said = data("build", "shuffled", folder, "--fraction", fraction, "--out", tmp_path / "out")
        assert code == 2
        assert not (tmp_path / "out").exists()
        return said

    assert "--fraction 0: accepted is more than 0, and at most 1" in mistake(tiny, 0)
    assert "--fraction 40: accepted is more than 0, and at most 1" in mistake(tiny, 40)
    assert "no train in it, whose captions could be shuffled; it has val" in mistake(tiny / "val", 0.4)
    assert "no such folder" in mistake(tmp_path / "nothing", 0.4)


def test_every_caption_chosen_moves_and_no_other():
    sources = caption_sources(1000, fraction=0.3, seed=7)
    assert sorted(sources.tolist()) == list(range(1000))
    assert (sources != np.arange(1000)).sum() == 300
