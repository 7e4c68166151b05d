"""Ensembles and subsets: equal to the mean of score matrices, and to some rows of the full ranking."""

import json
from dataclasses import replace

import numpy as np
import pytest

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval.ensemble import ensemble
from retrieval_eval.measure import measure
from retrieval_eval.protocols import PROTOCOLS, Protocol
from retrieval_eval.subset import read_subset
from retrieval_eval.uncertainty import intervals

CUSTOM = PROTOCOLS["custom"]


def model(seed=0, dim=8, images=24):
    data, rng = np.random.default_rng(9), np.random.default_rng(seed)
    rows = data.permutation(np.repeat(np.arange(images), 3))
    X = rng.normal(size=(images, dim))
    ids = 100 + data.permutation(images)
    return EmbeddingSet(
        X,
        X[rows] + rng.normal(size=(len(rows), dim)),
        ids,
        ids[rows],
        [f"key {i}" for i in ids],
        [f"caption {row}" for row in range(len(rows))],
    )


def test_an_ensemble_has_the_mean_of_the_scores():
    sets = [model(0), model(1, dim=5), model(2, dim=3)]
    joined = ensemble(sets, "abc")
    mean = np.mean([one.images.astype(np.float64) @ one.captions.T.astype(np.float64) for one in sets], axis=0)
    assert joined.images @ joined.captions.T == pytest.approx(mean, rel=1e-5, abs=1e-6)
    found = measure(joined, CUSTOM, members=["a", "b", "c"])
    best = mean.max(1, where=sets[0].image_ids[:, None] == sets[0].caption_ids, initial=-np.inf)
    ranks = 1 + (mean > best[:, None]).sum(1)
    assert (found.report.ranks["i2t"].expected == ranks).all()
    assert found.manifest["ensemble"] == ["a", "b", "c"]
    assert ensemble(sets[:1], "a") is sets[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: {"image_ids": s.image_ids[::-1]},
            r"a and b are not of the same queries: the image ids differ first",
        ),
        (lambda s: {"caption_ids": s.caption_ids[::-1]}, r"the caption ids differ first in row 0 \(\d+ and \d+\)"),
        (
            lambda s: {"texts": [*s.texts[:-1], "other"]},
            r"the captions differ first in row 71 \('caption 71' and 'other'\)",
        ),
        (lambda s: {"image_keys": ["x", *s.image_keys[1:]]}, "the image keys differ first in row 0"),
        (
            lambda s: {part: getattr(s, part)[:-1] for part in ("images", "image_ids", "image_keys", "thumbnails")},
            "24 and 23 image ids; accepted: embeddings of one split",
        ),
    ],
)
def test_other_queries_are_refused(change, said):
    other = model(1)
    with pytest.raises(UserError, match=said):
        ensemble([model(0), replace(other, **change(other))], "ab")


@pytest.mark.parametrize("kind", ["txt ids", "txt keys", "json ids", "json images", "captions"])
def test_a_subset_asks_the_full_gallery(tmp_path, kind):
    given = model()
    whole = measure(given, CUSTOM).report
    images = np.array([2, 5, 11, 20])
    ids, keys = given.image_ids[images].tolist(), [given.image_keys[row] for row in images]
    captions = np.flatnonzero(np.isin(given.caption_ids, ids))
    if kind == "captions":
        captions = captions[::2]
        images = np.flatnonzero(np.isin(given.image_ids, given.caption_ids[captions]))
    content = {
        "txt ids": "\n".join(map(str, ids)) + "\n\n",
        "txt keys": "\n".join(keys),
        "json ids": json.dumps(ids),
        "json images": json.dumps({"images": keys}),
        "captions": json.dumps({"captions": captions.tolist()}),
    }
    file = tmp_path / ("some.txt" if kind.startswith("txt") else "some.json")
    file.write_text(content[kind])
    subset = read_subset(file, given)
    found = measure(given, CUSTOM, subset)
    for direction, rows in (("i2t", images), ("t2i", captions)):
        assert (found.report.ranks[direction].expected == whole.ranks[direction].expected[rows]).all()
        for name, values in whole.per_query[direction].items():
            assert found.report.per_query[direction][name] == pytest.approx(values[rows])
            if name not in ("rank",):
                assert found.report.metrics[f"{direction}/{name}"] == pytest.approx(values[rows].mean())
        assert found.report.gallery(direction) == whole.gallery(direction)
        assert (found.folds[0].rows[direction] == rows).all()
    recalls = [found.report.metrics[f"{way}/r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert found.report.metrics["rsum"] == pytest.approx(sum(recalls))
    assert set(found.report.metrics) == set(whole.metrics)
    assert found.manifest["subset"]["file"] == file.name
    assert found.manifest["queries"] == {"i2t": len(images), "t2i": len(captions)}
    clusters = found.folds[0].clusters
    assert (given.image_ids[images][clusters["t2i"]] == given.caption_ids[captions]).all()
    low, high = intervals([found.report], [clusters])["rsum"]
    assert low <= found.report.metrics["rsum"] <= high


def test_a_subset_of_folds():
    given = model()
    halves = Protocol("halves", "two blocks", folds=2)
    rows = np.array([1, 13])
    full, some = measure(given, halves), measure(given, halves, _Subset(given, rows))
    assert (some.report.ranks["i2t"].expected == full.report.ranks["i2t"].expected[rows]).all()
    with pytest.raises(UserError, match="no query of block 2"):
        measure(given, halves, _Subset(given, rows[:1]))


def _Subset(given, rows):  # noqa: N802
    from retrieval_eval.subset import Subset

    captions = np.flatnonzero(np.isin(given.caption_ids, given.image_ids[rows]))
    return Subset(captions, {"file": "none"})


def test_keys_of_digits_are_keys_first(tmp_path):
    given = model()
    file = tmp_path / "ids.txt"
    # As Flickr30K's: every key is a number, and some are the ids of other images.
    keys = [f"{7 * row:07d}" for row in range(len(given.images))]
    keys[3] = str(given.image_ids[5])
    numbered = replace(given, image_keys=keys)
    file.write_text(f"{keys[0]}\n{keys[2]}\n{given.image_ids[9]}\n")  # two keys, and an id that is no key
    asked = read_subset(file, numbered)
    assert set(given.caption_ids[asked.captions]) == set(given.image_ids[[0, 2, 9]])
    file.write_text(f"{keys[0]}\n\n{keys[3]}\n")
    with pytest.raises(UserError, match=r"ids\.txt, line 3") as refused:
        read_subset(file, numbered)
    for reading in (
        f"'{keys[3]}' is the key of one image (with the id {given.image_ids[3]})",
        f"(with the key '{keys[5]}')",
    ):
        assert reading in str(refused.value)
    # Where both readings are one image there is nothing to ask.
    both = replace(given, image_keys=[str(image_id) for image_id in given.image_ids])
    file.write_text(f"{given.image_ids[4]}\n")
    assert set(given.caption_ids[read_subset(file, both).captions]) == {given.image_ids[4]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "101\n7\n", "a.txt, line 2: no image has the key or id '7'"),
        ("a.txt", "key 101\nkey 1O2", "a.txt, line 2: no image has the key 'key 1O2'; did you mean 'key "),
        ("a.txt", "0101", "line 1: no image has the key '0101'"),  # no way to write an id
        ("a.txt", "\n", "names no queries"),
        ("a.json", "[]", "names no queries"),
        ("a.json", "[101, true]", "entry 1: no image has the id True"),
        ("a.json", '{"captions": [0, 72]}', "entry 1 is 72; accepted: caption rows 0 to 71"),
        ("a.json", '{"captions": ["caption 3"]}', "entry 0 is 'caption 3'"),
        ("a.json", '{"videos": [1]}', r'must be a list of images, or {"images": \[...\]}'),
        ("a.json", '{"images": [1', "line 1, column"),
    ],
)
def test_a_subset_that_names_nothing(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read_subset(tmp_path / name, model())
