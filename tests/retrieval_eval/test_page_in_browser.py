"""The report and the comparison in a real browser: opened, searched, clicked through, by mouse and by keyboard."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from allpairs.embeddings import EmbeddingSet
from retrieval_eval import evaluate
from retrieval_eval.compare import main as compare
from retrieval_eval.page import write_report
from retrieval_eval.uncertainty import intervals

pytestmark = pytest.mark.browser

IMAGES, CAPTIONS = 1000, 5000
# Each would set the title, if it were taken for markup or for a script.
NASTY = "<img src=x onerror=\"document.title='stolen'\"><script>document.title='stolen'</script> nasty caption"
READY_MS = 1000.0


def thumbnail(rng):
    """80 × 80 pixels of a photograph's size: about 4 kB."""
    small = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((80, 80)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def embedding_set(noise, seed=1):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(IMAGES, 32))
    of = np.repeat(np.arange(IMAGES), 5)
    captions = images[of] + noise * np.random.default_rng(seed).normal(size=(CAPTIONS, 32))
    texts = [f"caption {row % 5} tells of picture number {row // 5}" for row in range(CAPTIONS)]
    texts[7:9] = [NASTY, NASTY.upper()]
    # A caption of image 4 says what one of image 2 says, and lies between the two.
    texts[20] = texts[10]
    captions[20] = images[2] + images[4]
    pictures = [thumbnail(rng) for _ in range(IMAGES)]
    scale = [np.linalg.norm(x, axis=1, keepdims=True) for x in (images, captions)]
    keys = [f"photo-{row:04d}" for row in range(IMAGES)]
    return EmbeddingSet(images / scale[0], captions / scale[1], np.arange(IMAGES), of, keys, texts, pictures)


@pytest.fixture(scope="module")
def embeddings():
    return embedding_set(1.5)


@pytest.fixture(scope="module")
def report(embeddings):
    return evaluate(embeddings.images, embeddings.captions, embeddings.image_ids, embeddings.caption_ids)


@pytest.fixture(scope="module")
def page(embeddings, report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(path, embeddings, report, title="one thousand", intervals=intervals(report))


@pytest.fixture(scope="module")
def comparison(embeddings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    embedding_set(1.8, seed=2).write(folder / "before/embeddings/test")
    embeddings.write(folder / "after/embeddings/test")
    compare(folder / "before", folder / "after", out=folder / "both")
    return folder / "both/comparison.html"


def assert_quiet(tab):
    """Nothing was complained about, and nothing asked for but the file itself and the pictures inside it."""
    assert tab.complaints == []
    assert {re.match("[a-z]+", url)[0] for url in tab.requests} <= {"file", "data"}
    assert len({url for url in tab.requests if url.startswith("file")}) == 1


def text_of(tab, selector):
    return " ".join(tab.get(f"document.querySelector({json.dumps(selector)}).innerText").split())


def test_a_thousand_images_open_in_a_second_and_nothing_leaves_the_page(tab, page, record_property):
    tab.open(page)
    timing = tab.get("(({domContentLoadedEventEnd: a, loadEventEnd: b}) => [a, b, performance.now()])"
                     "(performance.getEntriesByType('navigation')[0])")  # fmt: skip
    record_property("dom_content_loaded_ms", timing[0])
    print(f"\n{page.stat().st_size / 2**20:.1f} MiB: DOMContentLoaded {timing[0]:.0f} ms, all drawn {timing[2]:.0f} ms")
    assert 0 < timing[0] < READY_MS
    assert_quiet(tab)
    assert tab.get("document.title") == "one thousand"


def test_the_page_can_reach_nothing_and_runs_no_other_script(tab, page):
    tab.open(page)
    asked = tab.call(
        "Runtime.evaluate", expression="fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')",
        awaitPromise=True, returnByValue=True,
    )  # fmt: skip
    assert asked["result"]["value"] == "refused"
    tab.get("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    assert tab.get("window.ran") is None
    tab.get("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.ran = 1\" id=bait>b</b>')")
    tab.click("#bait")
    assert tab.get("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


def test_light_and_dark(tab, page):
    background = "getComputedStyle(document.body).backgroundColor"
    curve = "getComputedStyle(document.querySelector('#ranks svg path[style*=\"--first\"]')).stroke"
    tab.prefer("light")
    tab.open(page)
    light, light_curve = tab.get(background), tab.get(curve)
    tab.prefer("dark")
    dark = tab.get(background)
    assert dark != light
    assert tab.get(curve) != light_curve
    assert tab.get("document.getElementById('theme').ariaPressed") == "true"
    tab.click("#theme")
    assert tab.get(background) == light
    assert tab.get("document.getElementById('theme').ariaPressed") == "false"
    tab.open(page)  # the choice is kept
    assert tab.get(background) == light
    assert_quiet(tab)


def test_skip_link_and_order_of_focus(tab, page):
    tab.open(page)
    tab.press("Tab")
    assert tab.get("document.activeElement.className") == "skip"
    assert tab.get("document.activeElement.getBoundingClientRect().width > 50")
    tab.press("Enter")
    tab.wait("location.hash === '#result'")
    tab.press("Tab")
    assert tab.get("document.activeElement.ariaLabel") == "Metrics of each direction"
    assert tab.get("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    stops = []
    while tab.get("document.activeElement.className") != "skip":
        tab.press("Tab")
        stops.append(tab.get("document.activeElement.id || document.activeElement.closest('[id]')?.id || ''"))
    order = [stop for place, stop in enumerate(stops) if stop not in stops[:place]]
    expected = ["search", "order", "found", "detail", "i2t-worst", "i2t-best", "t2i-worst", "t2i-best", "suspect-list"]
    assert [stop for stop in order if stop in expected] == expected
    assert stops.count("i2t-worst") == 1  # one stop for all six: the arrow keys do the rest
    for role in ("header", "nav", "main"):
        assert tab.get(f"document.querySelectorAll({json.dumps(role)}).length") >= 1
    assert tab.get("[...document.querySelectorAll('button, input, select')].every((one) => one.innerText.trim()"
                   " || one.labels?.length || one.ariaLabel)")  # fmt: skip


def test_search_for_a_query(tab, page, embeddings, report):
    tab.open(page)
    tab.press("/")
    assert tab.get("document.activeElement.id") == "search"
    tab.type("PICTURE NUMBER 417")  # an image is found by its captions
    assert text_of(tab, "#count") == "1 of 1,000 queries"
    assert text_of(tab, "#found .name") == "photo-0417"
    assert tab.get("document.querySelector('#detail header img').naturalWidth") == 80
    assert text_of(tab, "#detail h4 strong") == f"{report.ranks['i2t'].optimistic[417]:,}"
    scores = embeddings.captions @ embeddings.images[417]
    order = np.argsort(-scores)
    found = tab.get("[...document.querySelectorAll('#detail .answers:not(.positives) q')].map((one) => one.innerText)")
    assert found == [embeddings.texts[row] for row in order[:5]]
    right = [row for row in order if row // 5 == 417]
    positives = tab.get("[...document.querySelectorAll('#detail .positives li')].map((one) => one.innerText)")
    for shown, row in zip(positives, right, strict=True):
        assert embeddings.texts[row] in shown
        assert f"rank {1 + (scores > scores[row]).sum():,} · {scores[row]:.3f}" in " ".join(shown.split())

    tab.click("input[value=t2i]")
    assert text_of(tab, "#count") == "5 of 5,000 queries"
    assert tab.get("document.querySelectorAll('#detail .answers:not(.positives) img').length") == 5
    assert tab.get("document.querySelector('#detail .positives img').alt") == "photo-0417"
    tab.click("#search")
    tab.get("document.getElementById('search').select()")
    tab.type("no such text")
    assert text_of(tab, "#detail") == "No query matches."
    assert_quiet(tab)


def test_arrow_keys_in_the_list_of_queries(tab, page, report):
    tab.open(page)
    selected = "document.querySelector('#found [aria-selected=true]')"
    place = f"[...document.querySelectorAll('#found li')].indexOf({selected})"
    tab.click("#search")
    assert tab.get(place) == 0
    tab.press("ArrowDown")
    tab.press("ArrowDown")
    tab.press("ArrowUp")
    assert tab.get(place) == 1
    assert tab.get("document.activeElement.id") == "search"
    assert tab.get(f"document.getElementById('search').getAttribute('aria-activedescendant') === {selected}.id")
    worst = np.sort(report.ranks["i2t"].optimistic)[::-1]
    assert text_of(tab, "#detail h4 strong") == f"{worst[1]:,}"
    tab.press("Tab")  # order
    tab.press("Tab")  # list
    assert tab.get("document.activeElement.id") == "found"
    assert tab.get("document.querySelectorAll('#found li').length") < IMAGES  # drawn as far as it was looked at
    tab.press("End")
    assert tab.get(place) == IMAGES - 1
    assert tab.get(f"{selected}.getBoundingClientRect().bottom <= document.getElementById('found')"
                   ".getBoundingClientRect().bottom")  # fmt: skip
    tab.press("Home")
    assert tab.get(place) == 0
    assert tab.get("document.getElementById('found').scrollTop") == 0
    assert_quiet(tab)


def test_open_a_worst_query(tab, page, report):
    tab.open(page)
    assert tab.get("document.querySelectorAll('#t2i-worst article').length") == 6
    rank = text_of(tab, "#t2i-worst article .rank strong")
    text = text_of(tab, "#t2i-worst article header q")
    assert rank == f"{report.ranks['t2i'].optimistic.max():,}"
    tab.click("#t2i-worst .open")
    assert text_of(tab, "#detail header q") == text
    assert text_of(tab, "#detail h4 strong") == rank
    assert tab.get("document.querySelector('input[value=t2i]').checked")
    assert tab.get("document.activeElement.id") == "found"
    assert tab.get("document.getElementById('queries').getBoundingClientRect().top < innerHeight / 2")

    # By keyboard: the arrow keys go from card to card, Enter opens.
    tab.get("document.querySelector('#i2t-best .open').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowDown")
    tab.press("ArrowLeft")
    assert tab.get("[...document.querySelectorAll('#i2t-best .open')].indexOf(document.activeElement)") == 1
    wanted = tab.get("document.activeElement.closest('article').querySelector('header img').alt")
    tab.press("Enter")
    assert text_of(tab, "#detail .key") == wanted
    assert_quiet(tab)


def test_hubs_and_suspects(tab, page):
    tab.open(page)
    assert tab.get("document.querySelectorAll('#t2i-hubs img').length") == 8
    same = tab.get(
        "[...document.querySelectorAll('#suspect-list li')].filter((one) => one.innerText.includes('same text'))"
        ".map((one) => [one.querySelector('img').alt, one.querySelector('q').innerText])"
    )
    assert ["photo-0002", "caption 0 tells of picture number 2"] in same
    before = tab.get("document.querySelectorAll('#suspect-list li').length")
    more = tab.get("!document.getElementById('more-suspects').hidden")
    assert more == (before == 12)
    if more:
        tab.click("#more-suspects")
        assert tab.get("document.querySelectorAll('#suspect-list li').length") > before
        assert tab.get("document.activeElement.closest('#suspect-list') !== null")
    assert_quiet(tab)


def test_a_caption_stays_text(tab, page):
    tab.open(page)
    tab.click("input[value=t2i]")
    tab.click("#search")
    tab.type("nasty")
    assert text_of(tab, "#count") == "2 of 5,000 queries"
    assert text_of(tab, "#detail header q") in (NASTY, NASTY.upper())
    assert tab.get("document.querySelectorAll('main script, main img[src=x], main img[src=X]').length") == 0
    assert tab.get("document.title") == "one thousand"
    assert_quiet(tab)


def test_two_runs_side_by_side(tab, comparison):
    tab.open(comparison)
    content = json.loads(comparison.with_suffix(".json").read_text())
    wins, losses = (content["queries"]["i2t"][kind] for kind in ("wins", "losses"))
    assert f"wins {wins:,}, loses {losses:,}" in text_of(tab, "#ranks .moves figcaption")
    assert text_of(tab, ".rsum strong") == f"{content['metrics']['rsum']['difference']:+.1f}"
    assert text_of(tab, "#count") == f"{wins:,} of 1,000 queries"
    assert tab.get("document.querySelectorAll('#detail .run').length") == 2
    before, after = (int(part.replace(",", "")) for part in text_of(tab, "#found .rank").split(" ", 1)[1].split(" → "))
    assert after < before
    tab.get("(() => { const order = document.getElementById('order'); order.value = 'losses';"
            " order.dispatchEvent(new Event('change')); })()")  # fmt: skip
    assert text_of(tab, "#count") == f"{losses:,} of 1,000 queries"
    tab.click("input[value=t2i]")
    assert text_of(tab, "#count") == f"{content['queries']['t2i']['losses']:,} of 5,000 queries"
    ranks = tab.get(
        "[...document.querySelectorAll('#detail h4 strong')].map((one) => Number(one.innerText.replace(',', '')))"
    )
    assert ranks[1] > ranks[0]
    timing = tab.get("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert 0 < timing < READY_MS
    tab.click("#theme")
    assert_quiet(tab)
