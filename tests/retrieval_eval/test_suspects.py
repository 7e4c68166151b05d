"""What a report says beyond its numbers: hardest negatives, hubs, suspected false negatives."""

import unicodedata

import numpy as np
import pytest

from allpairs.embeddings import EmbeddingSet
from retrieval_eval.page import write_report
from retrieval_eval.page.query_results import hubs, never_found, query_results
from retrieval_eval.page.suspects import suspects
from tests.retrieval_eval.pages import Page, measured, ring


def test_the_hardest_negative_of_a_query_with_many_positives():
    # Image 0 has 60 captions nearer than any other image's: more than the shortlist is deep.
    angles = np.concatenate([np.arange(60) / 60, [50.0, 120.0]])
    made = ring(([0.0, 90.0], angles), [0, 1], ["text"] * 62, [0] * 60 + [1, 1])
    found = query_results(made, measured(made))["i2t"]
    assert found.hardest_Q == pytest.approx([np.cos(np.radians(50)), np.cos(np.radians(90 - 59 / 60))], abs=1e-6)
    alone = ring(([0.0], [10.0, 20.0]), [0], ["a", "b"], [0, 0])
    assert query_results(alone, measured(alone))["i2t"].hardest_Q.tolist() == [-np.inf]


def test_a_page_of_positives_alone(tmp_path):
    alone = ring(([0.0], [10.0, 20.0]), [0], ["a", "b"], [0, 0])
    page = Page(write_report(tmp_path / "report.html", alone, measured(alone)).read_text(encoding="utf-8"))
    assert page.text["suspects"].startswith("Suspected false negatives 0 by text, 0 by score alone By text 0 pairs")


def test_hubs_are_counted_over_all_queries():
    # 24 images far apart, their captions too; caption 0 is the sum of all and so near every image.
    rng = np.random.default_rng(0)
    images = np.eye(24) + 0.05 * rng.random((24, 24))
    captions = np.eye(24)
    captions[0] = 0.9
    made = EmbeddingSet(
        images, captions, np.arange(24), np.arange(24), [f"i{i}" for i in range(24)], [f"t{i}" for i in range(24)]
    )
    report = measured(made)
    found = query_results(made, report)["i2t"]
    top = np.argsort(-(images @ captions.T), axis=1)[:, :10]
    counts = np.bincount(top.ravel(), minlength=24)
    first = hubs(found)[0]
    assert (first.item, first.queries, first.right) == (0, 24, 1)
    assert [hub.queries for hub in hubs(found)] == sorted(counts, reverse=True)[:8]
    assert never_found(found) == (counts == 0).sum()


def suspected(made):
    return suspects(made, query_results(made, measured(made)))


def test_suspects_by_text():
    long = "a brown dog runs after a red ball on the wet sand near the sea"
    texts = [
        "Bóng đá.",
        unicodedata.normalize("NFD", "a  BÓNG Đá").removeprefix("a  "),  # image 1's, the same words as image 0's
        long,
        f"{long} today",  # one word more
        "a dog left of a cat",
        "a cat left of a dog",  # the same words in another order: not alike
        "一只棕色的狗在海边的湿沙滩上追着红球跑",
        "一只棕色的狗在海边的湿沙滩上追着红球跑了",  # one letter more, in one run without a space
        "कि",
        "की",  # another vowel: not alike
        "...",
        "!!!",  # no words: not alike
    ]
    angles = [place // 2 * 60 + place % 2 * 2 for place in range(12)]
    found = suspected(ring((angles, angles), np.arange(12), texts, np.arange(12)))
    pairs = {(one.image, one.caption): one for one in found.text}
    assert {pair: one.reason for pair, one in pairs.items()} == {
        (0, 1): "same text",
        (1, 0): "same text",
        (2, 3): "similar text",
        (3, 2): "similar text",
        (6, 7): "similar text",
        (7, 6): "similar text",
    }
    assert pairs[0, 1].alike == 0
    assert [one.reason for one in found.text] == ["same text"] * 2 + ["similar text"] * 4
    assert found.score == []


def test_the_same_text_is_found_wherever_it_ranks_but_for_general_ones():
    angles = np.arange(60) * 3.0
    texts = [f"number {place}" for place in range(60)]
    texts[0], texts[40] = "far away", "Far away!"  # 120 degrees apart: no query has the other among its first ten
    texts[5:26] = ["a photo"] * 21
    found = suspected(ring((angles, angles), np.arange(60), texts, np.arange(60)))
    assert {(one.image, one.caption): one.alike for one in found.text} == {(0, 40): 0, (40, 0): 40}
    assert found.general == 1
    one = found.text[0]
    assert one.score == pytest.approx(np.cos(np.radians(120)), abs=1e-6)
    assert one.ahead == pytest.approx(one.score - 1, abs=1e-6)
    assert one.query == (one.image if one.direction == "i2t" else one.caption)


def test_a_score_is_suspected_where_it_stands_out():
    # Caption 1 was put beside image 0, whose own is further off; so image 1 is nearer to caption 0. No other lead.
    angles = np.arange(12) * 30.0
    shifted = angles + np.where(np.arange(12) % 2, 8.0, 10.0)
    shifted[0], shifted[1] = 12.0, 0.0
    moved = ring((angles, shifted), np.arange(12), [f"{name} alone" for name in "abcdefghijkl"], np.arange(12))
    scores = np.cos(np.radians(angles - shifted))
    found = suspected(moved)
    pairs = [(one.reason, one.image, one.caption, one.direction) for one in found.score]
    assert pairs == [("score", 0, 1, "t2i"), ("score", 1, 0, "i2t")]
    assert found.score[0].ahead == pytest.approx(1.0 - scores[1], abs=1e-5)
    assert found.score[1].ahead == pytest.approx(np.cos(np.radians(18)) - scores[1], abs=1e-5)
    assert found.text == []


def test_a_weak_models_scores_are_no_evidence(tmp_path):
    rng = np.random.default_rng(4)
    images, of = rng.normal(size=(200, 16)), np.repeat(np.arange(200), 3)
    captions = 0.3 * images[of] + rng.normal(size=(600, 16))
    captions[60] = 2 * images[50] - images[20]  # image 20's, and yet of image 50
    texts = [f"text {place}" for place in range(600)]
    texts[30] = texts[300] = "the same"
    made = EmbeddingSet(images, captions, np.arange(200), of, [f"i{place}" for place in range(200)], texts)
    report = measured(made)
    assert report.metrics["t2i/r1"] < 20
    found = suspects(made, query_results(made, report))
    assert (50, 60) in {(one.image, one.caption) for one in found.score}
    assert len(found.score) < 0.01 * 800
    assert len(found.text) == 2
    page = Page(write_report(tmp_path / "report.html", made, report).read_text(encoding="utf-8"))
    assert page.text["suspects"].startswith(
        f"Suspected false negatives 2 by text, {len(found.score)} by score alone"
        " By text 2 pairs of image and caption: the same 2, similar 0"
    )
    assert page.text["suspects"].endswith("more than three times the distance between the quartiles. Show more")
    data = page.json("data")["suspects"]
    assert [one["reason"] for one in data["text"]] == ["same text"] * 2
    assert [one["reason"] for one in data["score"]] == ["score"] * len(found.score)
