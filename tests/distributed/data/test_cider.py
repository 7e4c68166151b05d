"""CIDEr-D against its definition written out, and by hand; the margins that SAM makes of it."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from distributed.data import Position
from distributed.data.cider import CiderD, words_of
from distributed.data.sam import SemanticMargins
from tests.distributed.data.readers import train_reader


def written_out(candidate: str, references: list[str], documents: list[list[str]]) -> float:
    """CIDEr-D one n-gram at a time."""
    images = sum(bool(texts) for texts in documents)
    total = 0.0
    for n in (1, 2, 3, 4):

        def grams(text: str, n: int = n) -> Counter:
            words = text.split()
            return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

        having = Counter(gram for texts in documents for gram in {gram for text in texts for gram in grams(text)})

        def vector(text: str, having: Counter = having, grams=grams) -> dict:
            return {gram: count * math.log(images / having[gram]) for gram, count in grams(text).items()}

        for reference in references:
            c, r = vector(candidate), vector(reference)
            lengths = math.hypot(*c.values()) * math.hypot(*r.values())
            product = sum(min(c[gram], r[gram]) * r[gram] for gram in c.keys() & r.keys())
            apart = len(candidate.split()) - len(reference.split())
            total += math.exp(-(apart**2) / 72) * (product / lengths if lengths else 0)
    return 10 * total / 4 / len(references)


@pytest.fixture(scope="module")
def documents() -> list[list[str]]:
    """Captions of 0 to 9 words of few, some images without any."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(20)]
    return [
        [" ".join(draw.choices(words, k=draw.randint(0, 9))) for _ in range(draw.choice((0, 1, 3, 4)))]
        for _ in range(25)
    ]


def test_every_pair_is_as_the_definition_says(documents):
    captions = [text for texts in documents for text in texts]
    candidates, references = np.arange(0, len(captions), 3), np.arange(1, len(captions), 3)
    found = CiderD(documents).matrix(candidates, references)
    expected = [[written_out(captions[c], [captions[r]], documents) for c in candidates] for r in references]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.count_nonzero(found) > 50


def test_worked_out_by_hand():
    # "a" is in both images: idf 0. "cat", "dog" and the two bigrams are in one of two: idf log 2.
    cider = CiderD([["a cat", "a cat a cat"], ["A dog!"]])
    found = cider.matrix(np.arange(3), np.arange(3))
    assert found[0, 0] == pytest.approx(10 * (1 + 1) / 4)
    assert found[2, :2].tolist() == [0, 0]
    # Candidate "a cat a cat" against "a cat", lengths 4 and 2: "cat" twice, clipped to once, over ‖2·log 2‖‖log 2‖ is
    # ½; of its bigrams "a cat" twice and "cat a" once, √5·log 2 long, clipped to one in common.
    assert found[0, 1] == pytest.approx(10 / 4 * (1 / 2 + 1 / math.sqrt(5)) * math.exp(-4 / 72))
    # The other way round the reference's own weight of 2 counts, min(1, 2)·2.
    assert found[1, 0] == pytest.approx(10 / 4 * (2 / 2 + 2 / math.sqrt(5)) * math.exp(-4 / 72))


def test_words_are_lower_case_runs_of_letters_and_digits():
    assert words_of("A man's T-Shirt, №5 ﬁre_dog über") == ["a", "man", "s", "t", "shirt", "no5", "fire", "dog", "über"]


def captioned(documents, png) -> list[tuple[str, bytes]]:
    members = []
    for number, texts in enumerate(documents):
        members.append((f"k{number:03d}.png", png((number, 0, 0))))
        members.append((f"k{number:03d}.txt", "\n".join(texts).encode()))
    return members


@pytest.mark.parametrize("unit", ["images", "captions"])
def test_sam_is_the_distance_to_the_nearest_caption_of_another_image(unit, documents, tmp_path, tar_shard, png):
    from distributed.data import open_dataset
    from distributed.data.writer import write_manifest

    mask_equal = unit == "captions"
    texts = [[text for text in each if text] for each in documents]
    for each in texts[::4]:
        each.append(texts[1][0])  # a caption of many images
    shard = tar_shard(tmp_path / "0.tar", captioned(texts, png))
    about = {"name": "made", "split": "train", "source": {}, "kind": "image", "text": "lines", "relative": True}
    write_manifest(tmp_path, [shard], **about)
    dataset = open_dataset(tmp_path)
    said: list[str] = []
    margins = SemanticMargins(dataset, 4.0, said.append, mask_equal=mask_equal)
    assert said == [f"margins.source=sam: counting the n-grams of {dataset.manifest.captions} captions"]
    found = {}
    for world in (1, 2, 3):
        readers = [
            train_reader(dataset, global_batch=12, seed=1, rank=rank, world=world, image_size=8, margins=margins,
                         epoch_unit=unit, max_bad_fraction=1, ahead=0)
            for rank in range(world)
        ]  # fmt: skip
        steps = zip(*(reader.batches(Position(1)) for reader in readers), strict=True)
        found[world] = [
            [pair for batch in step for pair in zip(batch.image_ids.tolist(), batch.captions, batch.margins.tolist(),
                                                    strict=True)]
            for step in steps
        ]  # fmt: skip
    assert found[1] == found[2] == found[3]
    assert len({margin for step in found[1] for *_, margin in step}) > 10
    for step in found[1]:
        for image, caption, margin in step:
            negatives = [text for row, text, _ in step if row != image and not (mask_equal and text == caption)]
            nearest = max(written_out(text, texts[image], texts) for text in negatives)
            expected = min(1, (written_out(caption, texts[image], texts) - nearest) / 4.0)
            assert margin == pytest.approx(expected, rel=1e-6, abs=1e-7)
