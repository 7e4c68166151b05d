"""The report: complete, self-contained, and deaf to what captions try."""

import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from retrieval_eval import evaluate
from retrieval_eval.cross_check import cross_check
from retrieval_eval.embeddings import EmbeddingSet
from retrieval_eval.page import write_report

NASTY = "<script>alert('caption')</script><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with attributes, the visible text per enclosing section, and whether every tag was closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], {}
        self.sections = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append(dict(attrs)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.sections[-1] if self.sections else "top"
        self.text[where] = " ".join(f"{self.text.get(where, '')} {data}".split())

    def all(self, tag, **attributes):
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]


def thumbnail(value):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value * 20 % 256, 90, 120)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(2)
    images = rng.normal(size=(12, 8))
    ids = np.repeat(np.arange(12), 2)
    captions = images[ids] + 0.9 * rng.normal(size=(24, 8))
    thumbnails = [thumbnail(i) for i in range(11)] + [b"GIF89a not a picture we carry"]
    texts = [f"caption {i} of image {i // 2}" for i in range(24)]
    texts[4:6] = [NASTY, NASTY]
    keys = [f"picture-{i}" for i in range(11)] + ['"><script>key</script>']
    return EmbeddingSet(images, captions, np.arange(12), ids, keys, texts, thumbnails, "test", "sha256:beef")


@pytest.fixture(scope="module")
def report(embeddings):
    return evaluate(embeddings.images, embeddings.captions, embeddings.image_ids, embeddings.caption_ids)


HISTORY = [
    {"step": 10, "epoch": 0.5, "train/loss": 2.0, "train/positive_similarity": 0.1},
    {"step": 20, "epoch": 1.0, "train/loss": math.nan, "train/hardest_negative_similarity": 0.3},
    {"step": 20, "epoch": 1, "val/rsum": 210.0, "val/loss": 1.9, "val/i2t/r1": 20.0, "val/t2i/r1": 18.0},
    {"step": 30, "epoch": 1.5, "train/loss": 1.0, "train/positive_similarity": 0.4},
    {"step": 40, "epoch": 2, "val/rsum": 250.0, "val/loss": 1.5, "val/i2t/r1": 30.0, "val/t2i/r1": 22.0},
]


@pytest.fixture(scope="module")
def source(embeddings, report, tmp_path_factory):
    path = write_report(
        tmp_path_factory.mktemp("page") / "new" / "report.html",
        embeddings,
        report,
        history=HISTORY,
        title="scenes & <b>friends</b>",
        config={"objective": {"name": "unified", "margin": 0.2}, "note": "</pre><script>config</script>"},
        facts={"Commit": "abc<script>"},
        cross_check=cross_check(report, embeddings.images, embeddings.captions),
    )
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_the_numbers_are_the_reports(page, report):
    text = page.text["result"]
    for direction in ("i2t", "t2i"):
        for name in ("r1", "r5", "r10", "average_recall", "mean_rank"):
            assert f"{report.metrics[f'{direction}/{name}']:.1f}" in text
        assert f"{report.metrics[f'{direction}/map5']:.3f}" in text
    assert f"RSUM {report.metrics['rsum']:.1f}" in text
    # Two positives among 24 captions, one among 12 images; R@10 by chance: 1 - (14·13)/(24·23) and 10/12.
    assert f"by chance {200 / 24:.1f}" in text
    assert f"{100 * (1 - 14 * 13 / (24 * 23)):.1f}" in text
    assert f"by chance {100 / 12:.1f}" in text


def test_facts_and_configuration(page):
    text = page.text["facts"]
    for fact in (
        "Protocol custom",
        "Split test",
        "sha256:beef",
        "Images 12",
        "Captions 24",
        "abc<script>",
        "margin: 0.2",
    ):
        assert fact in text
    assert "faiss-cpu agrees with every counted hit and miss" in text


def test_nothing_comes_from_outside_and_nothing_runs(source, page):
    assert "http" not in re.sub(r"http-equiv", "", source)
    assert "@import" not in source
    assert not any(page.all(tag) for tag in ("script", "link", "iframe", "object", "embed", "base", "b"))
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert re.match(r"data:image/(png|jpeg);base64,", attributes.get("src") or "data:image/png;base64,")
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy


def test_captions_and_keys_are_text(source, page):
    assert "<script" not in source
    assert NASTY in page.text["i2t"] + page.text["t2i"]
    assert "scenes & <b>friends</b>" in page.text["top"]


def test_examples_show_the_right_answers(page, embeddings, report):
    assert page.sections == ["result", "training", "ranks", "i2t", "t2i", "facts"]
    worst = int(report.ranks["i2t"].expected.argmax())
    assert f"rank {report.ranks['i2t'].optimistic[worst]}" in page.text["i2t"]
    shown = page.all("li", **{"class": "right"})
    assert shown
    assert len(page.all("article")) == 4 * 6
    assert page.text["i2t"].count("right, score") + page.text["t2i"].count("right, score") == len(shown)
    # The GIF is left out: its image appears by key.
    assert page.all("span", **{"class": "picture blank"}) or page.all("span", **{"class": "picture blank large"})


def test_curves_are_drawn_in_the_pages_colours(source, page):
    for heading in ("Loss", "RSUM", "Recall", "Similarity"):
        assert heading in page.text["training"]
    assert len(page.all("svg")) == 6
    assert all("viewbox" in svg for svg in page.all("svg"))
    assert "var(--first)" in source
    assert "#0101" not in source  # every stand-in colour was replaced
    assert "DejaVu" not in source
    assert "prefers-color-scheme: dark" in source


def test_without_history_and_embeddings(report, tmp_path):
    page = Page(write_report(tmp_path / "report.html", None, report).read_text(encoding="utf-8"))
    assert page.sections == ["result", "ranks", "facts"]
    assert len(page.all("svg")) == 2


def test_ties_are_shown_three_ways(embeddings, tmp_path):
    same = np.ones_like(embeddings.images), np.ones_like(embeddings.captions)
    collapsed = evaluate(*same, embeddings.image_ids, embeddings.caption_ids)
    page = Page(write_report(tmp_path / "report.html", embeddings, collapsed).read_text(encoding="utf-8"))
    assert "36 queries tie with a wrong answer" in page.text["result"]
    for treatment in ("optimistic 100.0", f"expected {100 / 12:.1f}", "pessimistic 0.0"):
        assert treatment in page.text["result"]
    assert "rank 1–23" in page.text["i2t"]


def test_one_direction_alone(tmp_path):
    one_way = evaluate(np.eye(4)[:2], np.eye(4), [0, 1], range(4), both_directions=False)
    page = Page(write_report(tmp_path / "report.html", None, one_way).read_text(encoding="utf-8"))
    assert "RSUM" not in page.text["result"]
