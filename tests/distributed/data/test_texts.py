"""Equal captions of several images: their numbers, their count, and what every command says of them."""

import json
from collections import defaultdict

import pytest
import torch

from distributed.data import Position, open_dataset
from distributed.data.texts import SplitTexts, text_id
from tests.distributed.data.readers import train_reader


def test_a_text_is_its_letters_whatever_the_space_and_the_spelling():
    assert text_id("a caf\u00e9  \t by\nnight ") == text_id("a cafe\u0301 by night")
    different = ["a café", "A café", "a cafe", "a café.", "a ｃafé", ""]
    assert len({text_id(text) for text in different}) == len(different)
    # The same in every process and in every version: a resumed run masks what it masked.
    assert text_id("a café by night") == -5547207204365604554
    assert -(2**63) <= text_id("x") < 2**63


def test_texts_of_several_images_are_counted_and_named_once():
    texts = SplitTexts("train")
    for captions in (["a dog", "a dog"], ["a cat", "an ox"], [], ["an  ox", "a dog"], ["an ox"], ["a hen"]):
        texts.add(captions)
    assert texts.shared() == (2, 4)
    note = texts.note("image-{}".format)
    assert note is not None
    assert note.startswith("2 texts of train are captions of several images each, of 4 in all (image-0 = image-3, im")
    assert "(image-0 = image-3, image-1 = image-3): data.equal_captions=masked" in note
    unique = SplitTexts("val")
    unique.add(["a dog", "a dog"])
    assert (unique.shared(), unique.note(str)) == ((0, 0), None)


def test_every_command_counts_them(command, tmp_path, png):
    source = tmp_path / "pairs"
    source.mkdir()
    for number, text in enumerate(("a dog", "a cat\na pet", "a dog\na pet", "a pet", "a fox")):
        (source / f"{number}.png").write_bytes(png((number, 0, 0)))
        (source / f"{number}.txt").write_text(text)
    note = "note: 2 texts of train are captions of several images each, of 4 in all (0 = 2, 1 = 2): data.equal_captions"
    code, text, _ = command("build", "folder", source, "--out", tmp_path / "out", "--val", 0, "--test", 0)
    assert code == 0
    assert note in text
    code, text, _ = command("validate", tmp_path / "out")
    assert code == 0
    assert note in " ".join(text.split())
    code, text, _ = command("describe", tmp_path / "out", "--json", tmp_path / "d.json")
    assert code == 0
    assert "2 texts, each of several images: 4 in all" in text
    assert json.loads((tmp_path / "d.json").read_text())[0]["shared_captions"] == {"texts": 2, "images": 4}


@pytest.mark.realdata
def test_texts_of_the_real_pairs(pairs):
    dataset = open_dataset(pairs / "train")
    images = defaultdict(set)
    for key, captions in dataset.captions_by_key():
        for caption in captions:
            images[caption].add(key)
    several = [keys for keys in images.values() if len(keys) > 1]
    found = dataset.texts().shared()
    assert found == (len(several), len(set().union(*several)))
    if dataset.manifest.name == "emoji":
        assert found == (266, 490)


def test_the_reader_hands_over_which_captions_say_the_same(shards_dataset, png):
    members = [[(f"{i}.png", png((i, 0, 0))), (f"{i}.txt", f"pair {i // 2}".encode())] for i in range(12)]
    dataset = shards_dataset([[one for both in members for one in both]])
    settings = {"global_batch": 12, "seed": 3, "image_size": 8}
    (plain,) = train_reader(dataset, **settings).batches(Position(3))
    assert plain.text_ids is None
    ranks = []
    for rank in (0, 1):
        (batch,) = train_reader(dataset, **settings, equal_captions="masked", rank=rank, world=2).batches(Position(3))
        assert batch.text_ids.dtype == torch.int64
        assert batch.text_ids.tolist() == [text_id(caption) for caption in batch.captions]
        ranks.append(batch)
    assert [caption for batch in ranks for caption in batch.captions] == plain.captions
    assert len(set(torch.cat([batch.text_ids for batch in ranks]).tolist())) == 6
