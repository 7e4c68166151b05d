"""Protocols: the galleries they accept and refuse, and what folds, videos and missing captions mean."""

import numpy as np
import pytest

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval import evaluate
from retrieval_eval.measure import measure
from retrieval_eval.protocols import PROTOCOLS, find_protocol


def gallery(images, captions, *, dim=4, empty=()):
    """`captions` per image (one number, or one each), in shuffled order, ids in no order."""
    rng = np.random.default_rng(images)
    ids = rng.permutation(10 * images)[:images]
    X = rng.normal(size=(images, dim))
    rows = rng.permutation(np.repeat(np.arange(images), captions))
    return EmbeddingSet(
        X,
        X[rows] + rng.normal(size=(len(rows), dim)),
        ids,
        ids[rows],
        [f"image {i}" for i in ids],
        ["" if row in empty else f"caption {row}" for row in range(len(rows))],
        split="test",
        data_hash="sha256:abc",
    )


@pytest.mark.parametrize(
    ("name", "images", "captions", "directions"),
    [
        ("flickr30k-1k", 1000, 5, ("i2t", "t2i")),
        ("coco-5k", 5000, 5, ("i2t", "t2i")),
        ("msrvtt-full", 2990, 1 + np.arange(2990) % 20, ("v2t", "t2v")),
        ("msrvtt-1ka", 1000, 1, ("v2t", "t2v")),
        ("custom", 7, [1, 2, 3, 1, 2, 3, 1], ("i2t", "t2i")),
    ],
)
def test_a_fitting_gallery(name, images, captions, directions):
    given = gallery(images, captions, dim=2)
    found = measure(given, PROTOCOLS[name])
    assert found.report.directions == directions
    expected = evaluate(given.images, given.captions, given.image_ids, given.caption_ids)
    assert list(found.report.metrics.values()) == list(expected.metrics.values())
    total = int(np.sum(captions)) if np.ndim(captions) else images * captions
    assert found.manifest["protocol"] == name
    assert found.manifest["gallery"] == dict(zip(directions, (total, images), strict=True))
    assert found.manifest["captions_per_item"] == pytest.approx(total / images)
    assert (found.manifest["split"], found.manifest["data_hash"]) == ("test", "sha256:abc")
    assert all(found.manifest[key] for key in ("definition", "precision", "ties"))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("flickr30k-1k", gallery(999, 5), "not the gallery of flickr30k-1k: it has 999 images; accepted: 1,000 images"),
        ("flickr30k-1k", gallery(1000, [5] * 999 + [4]), r"it has 4 captions for image row 999 \(id \d+\); accepted"),
        ("coco-5k", gallery(1000, 5), "1,000 images; accepted: 5,000 images with 5 captions each"),
        ("coco-1k-5fold", gallery(1000, 5), "five consecutive blocks of 1,000 images and averaged; any other gallery"),
        ("msrvtt-1ka", gallery(1000, 2), r"2 captions for video rows 0 \(id \d+\), .* and 995 more; accepted: 1,000"),
        ("msrvtt-full", gallery(2990, [1] * 2989 + [21]), "it has 21 captions for video row 2989"),
        ("custom", gallery(3, [1, 0, 1]), "it has 0 captions for image row 1"),
    ],
)
def test_another_gallery_is_refused(name, given, said):
    with pytest.raises(UserError, match=said):
        measure(given, PROTOCOLS[name])


def test_captions_of_no_image_are_refused():
    given = gallery(3, 2)
    given.caption_ids[4] = 99_999
    with pytest.raises(UserError, match=r"1 captions belong to no image: row 4 \(id 99999\)"):
        measure(given, PROTOCOLS["custom"])


def test_an_unknown_name():
    with pytest.raises(UserError, match=r"'coco-5K'; did you mean 'coco-5k'\? \(accepted: flickr30k-1k, .*custom\)"):
        find_protocol("coco-5K")


def test_five_folds_are_blocks_of_images_averaged():
    given = gallery(5000, 5, dim=3)
    found = measure(given, PROTOCOLS["coco-1k-5fold"])
    blocks = []
    for start in range(0, 5000, 1000):
        ids = given.image_ids[start : start + 1000]
        own = np.isin(given.caption_ids, ids)
        blocks.append(
            evaluate(given.images[start : start + 1000], given.captions[own], ids, given.caption_ids[own]).metrics
        )
    expected = {name: np.mean([block[name] for block in blocks]) for name in blocks[0]}
    assert found.report.metrics == pytest.approx(expected, rel=1e-14)
    recalls = [found.report.metrics[f"{way}/r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert found.report.metrics["rsum"] == pytest.approx(sum(recalls))
    assert found.report.ties["expected"] == found.report.metrics
    assert found.manifest["gallery"] == {"i2t": 5000, "t2i": 1000}
    assert found.manifest["queries"] == {"i2t": 5000, "t2i": 25_000}
    assert found.manifest["folds"] == "mean over 5 consecutive blocks"
    assert found.report.queries("t2i") == 25_000
    assert found.report.gallery("t2i") == 1000
    assert np.mean(found.report.per_query["t2i"]["r1"]) == pytest.approx(expected["t2i/r1"])
    assert np.mean(found.report.ranks["i2t"].expected) == pytest.approx(expected["i2t/mean_rank"])


def test_missing_captions_of_videos_are_left_out_and_counted():
    given = gallery(2990, 3, dim=2)
    spare = np.flatnonzero(np.r_[False, np.diff(np.sort(given.caption_ids)) == 0])[:40]
    missing = np.argsort(given.caption_ids, kind="stable")[spare]  # each video keeps its first
    given.texts = ["  " if row in set(missing) else text for row, text in enumerate(given.texts)]
    given.captions[missing] = 1e3  # would win every ranking
    found = measure(given, PROTOCOLS["msrvtt-full"])
    kept = np.setdiff1d(np.arange(len(given.captions)), missing)
    expected = evaluate(given.images, given.captions[kept], given.image_ids, given.caption_ids[kept])
    assert list(found.report.metrics.values()) == list(expected.metrics.values())
    assert found.manifest["missing_captions"] == 40
    assert found.manifest["gallery"]["v2t"] == 2990 * 3 - 40
    assert (found.folds[0].asking["t2v"].numbers == kept).all()  # rows keep the numbers they were given with


def test_a_video_without_any_caption_is_refused():
    given = gallery(2990, 1)
    given.texts[17] = ""
    with pytest.raises(UserError, match=r"it has 0 captions for video row \d+ \(id \d+\), 1 empty ones left out"):
        measure(given, PROTOCOLS["msrvtt-full"])
