"""The report and the comparison in a real browser: opened, searched, clicked through, by mouse and by keyboard."""

import io
import json
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from allpairs.embeddings import EmbeddingSet
from retrieval_eval import evaluate
from retrieval_eval.compare import main as compare
from retrieval_eval.page import write_report
from retrieval_eval.page.folding import fold, words
from retrieval_eval.uncertainty import intervals

pytestmark = pytest.mark.browser

IMAGES, CAPTIONS = 1000, 5000
# Each would set the title, if it were taken for markup or for a script.
NASTY = "<img src=x onerror=\"document.title='stolen'\"><script>document.title='stolen'</script> nasty caption"
READY_MS = 1000.0
WORLD = [
    unicodedata.normalize("NFD", "Trận bóng đá ở Łódź"),  # marks apart, as some systems write them
    "trận Bóng Đá ở Łódź, trong mưa",
    "İSTANBUL'da bir straße",
    "किताब मेज पर है",
    "कताई और की",
    "東京タワーの夜と赤い車",
    "كُتُب على الطاولة",
    "كَتَبَ رسالة",
    "за́мок и мой ёж",
    "the cartoon of a carpet",
]
# What is typed, and which of these it finds.
SEARCHES = {
    "bong da": [0, 1],
    "ĐÁ BÓNG": [0, 1],
    "lodz mưa": [1],
    "istanbul strasse": [2],
    "किताब": [3],
    "कि": [3],  # nothing has it as a word: parts of words
    "की": [4],
    "赤い": [5],
    "夜 東京": [5],
    "كتب": [6, 7],
    "كُتُب": [6],
    "замок еж": [8],
    "мои": [],
    "cart": [9],  # likewise
    "carpet the of": [9],
    "…": list(range(10)),
}

PARTS = ["read", "copy", "encode", "loss", "agree", "backward", "sync", "optimizer", "save", "other"]


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
    texts[50:60] = WORLD
    # A caption of image 4 says what one of image 2 says, and lies between the two.
    texts[20] = texts[10]
    captions[20] = images[2] + images[4]
    texts[25] = texts[15].upper()
    captions[25] = images[3] + images[5]
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
    history = [
        {"epoch": 1 + step, "train/loss": 2 - step / 9, "val/rsum": 90 * step}
        | {f"val/{way}/r{k}": 10 * step + k for way in ("i2t", "t2i") for k in (1, 5, 10)}
        | {
            f"{split}/{kind}_similarity": step / 9
            for split in ("train", "val")
            for kind in ("positive", "hardest_negative")
        }
        | {f"train/ms_{part}": 10.0 + step for part in PARTS}
        for step in range(5)
    ]
    return write_report(path, embeddings, report, title="one thousand", intervals=intervals(report), history=history)


@pytest.fixture(scope="module")
def comparison(embeddings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    embedding_set(1.8, seed=2).write(folder / "before/embeddings/test")
    embeddings.write(folder / "after/embeddings/test")
    compare(str(folder / "before"), str(folder / "after"), out=folder / "both")
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


# What is drawn behind a text and in it, as the browser paints it; then WCAG's contrast of the two.
CONTRASTS = """
(() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const painted = new Map();
  const luminance = (colours) => {
    const key = colours.join("|");
    if (!painted.has(key)) {
      for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
      const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
      painted.set(key, 0.2126 * r + 0.7152 * g + 0.0722 * b);
    }
    return painted.get(key);
  };
  const style = (one, property, part) => getComputedStyle(one, part)[property];
  const around = (one) => one ? [...around(one.parentElement), one] : [];
  const found = [];
  const measure = (one, colour, text) => {
    const boxes = around(one);
    const behind = ["white", ...boxes.map((box) => style(box, "backgroundColor"))];
    const seen = boxes.every((box) => style(box, "opacity") === "1") ? colour : "transparent";
    const [low, high] = [luminance(behind), luminance([...behind, seen])].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), one.tagName, one.getAttribute("class"), text.slice(0, 40)]);
  };
  for (const details of document.querySelectorAll("details")) details.open = true;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const one = walker.currentNode.parentElement;
    if (!text || one.closest("script, noscript, select, .unseen, .skip") || !one.checkVisibility()) continue;
    measure(one, style(one, one.closest("svg") ? "fill" : "color"), text);
  }
  for (const one of document.querySelectorAll("select")) measure(one, style(one, "color"), one.value);
  for (const one of document.querySelectorAll("[placeholder]")) {
    measure(one, style(one, "color"), "typed");
    measure(one, style(one, "color", "::placeholder"), one.placeholder);
  }
  return found;
})()
"""


def test_all_text_stands_out_in_light_and_dark(tab, page, comparison):
    for path in (page, comparison):
        tab.open(path)
        for scheme in ("light", "dark"):
            tab.prefer(scheme)
            found = tab.get(CONTRASTS)
            assert len(found) > 300
            faint = {tuple(one[1:]): one[0] for one in found if one[0] < 4.5}
            assert not faint, (path.name, scheme, faint)


BEYOND = """[...document.querySelectorAll('main *')].filter((one) => one.getBoundingClientRect().right > 390.5
    && !one.closest('.scroll')).map((one) => [one.tagName, one.id, one.textContent.slice(0, 40)])"""


def test_on_a_phone(tab, page, comparison):
    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    for path in (page, comparison):
        tab.open(path)
        assert tab.get(BEYOND) == []
        assert tab.get("document.documentElement.scrollWidth") == 390
        sizes = tab.get(
            "[...document.querySelectorAll('figure svg text')].map((one) => [one.getBoundingClientRect().height,"
            " parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a, one.textContent])"
        )
        assert len(sizes) > 20
        assert [one for one in sizes if min(one[:2]) < 10] == []


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
    tab.wait("document.getElementById('theme').ariaPressed === 'true'")
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
    expected = ["search", "order", "found", "detail", "i2t-worst", "i2t-best", "t2i-worst", "t2i-best", "text-suspects"]
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
    tab.type("417  NUMBER, picture")  # an image is found by its captions
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

    tab.get("document.getElementById('search').select()")
    tab.type("PHOTO-0417")  # and by its key
    assert text_of(tab, "#found .name") == "photo-0417"
    assert text_of(tab, "#count") == "1 of 1,000 queries"
    tab.get("document.getElementById('search').select()")
    tab.type("number 417 picture")
    tab.click("input[value=t2i]")
    assert text_of(tab, "#count") == "5 of 5,000 queries"
    assert tab.get("document.querySelectorAll('#detail .answers:not(.positives) img').length") == 5
    shown = tab.get("document.querySelector('#detail .positives img').alt")
    assert shown == "caption 0 tells of picture number 417"
    tab.click("#search")
    tab.get("document.getElementById('search').select()")
    tab.type("no such text")
    assert text_of(tab, "#detail") == "No query matches."
    assert_quiet(tab)


def test_search_by_whole_words_in_any_order_and_script(tab, page):
    tab.open(page)
    tab.click("input[value=t2i]")
    tab.get("document.getElementById('order').value = 'data'")

    def search(text):
        tab.get("document.getElementById('search').value = ''")
        tab.get("document.getElementById('search').focus()")
        tab.type(text)
        return tab.get("[...document.querySelectorAll('#found .name')].map((one) => one.innerText)"), text_of(
            tab, "#count"
        )

    for wanted, places in SEARCHES.items():
        found, count = search(wanted)
        assert [WORLD.index(text) for text in found if text in WORLD] == places, wanted
        assert ("parts of words" in count) == (wanted in ("कि", "cart")), wanted
    assert count == "5,000 of 5,000 queries: no word to search for"
    assert search("number 41")[1] == "5 of 5,000 queries"  # not 410, 417 and 841
    assert search("picture numbe 841")[1] == "5 of 5,000 queries by parts of words"
    assert "whole, in any order" in text_of(tab, "#how")
    assert tab.get("document.getElementById('search').getAttribute('aria-describedby')") == "how"

    # The page folds and cuts as Python does: every letter, between others, and the sentences above.
    letters = [chr(code) for code in [*range(0x20, 0x3200), *range(0xAC00, 0xAC40), *range(0xF900, 0x10000)]]
    texts = [f"A{one}b {one}{one}" for one in letters if unicodedata.category(one) not in ("Cn", "Cs", "Co")]
    texts += [*WORLD, *SEARCHES]
    theirs = tab.get(f"{json.dumps(texts)}.map((text) => [fold(text), words(fold(text))])")
    differing = [text for text, pair in zip(texts, theirs, strict=True) if pair != [fold(text), words(fold(text))]]
    assert differing == []
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
    wanted = tab.get("document.activeElement.closest('article').querySelector('header img').title")
    tab.press("Enter")
    assert text_of(tab, "#detail .key") == wanted
    assert_quiet(tab)


def test_hubs_and_suspects(tab, page):
    tab.open(page)
    assert tab.get("document.querySelectorAll('#t2i-hubs img').length") == 8
    first = tab.get(
        "[...document.querySelectorAll('#text-suspects li')].map((one) => [one.querySelector('img').alt,"
        " ...[...one.querySelectorAll('q')].map((text) => text.innerText), one.querySelector('.tag').innerText])"
    )
    said = "caption 0 tells of picture number 2"
    assert [said, said, "same text"] in first  # what is the same to the letter stands once
    said = "caption 0 tells of picture number 3"
    assert [said, said.upper(), said, "same text"] in first
    assert {tag for *_, tag in first} == {"same text"}
    assert re.match(r"Suspected false negatives \d+ by text, \d+ by score alone$", text_of(tab, "#suspects h2"))
    before = tab.get("document.querySelectorAll('#text-suspects li').length")
    more = tab.get("!document.getElementById('more-text-suspects').hidden")
    assert more == (before == 12)
    if more:
        tab.click("#more-text-suspects")
        assert tab.get("document.querySelectorAll('#text-suspects li').length") > before
        assert tab.get("document.activeElement.closest('#text-suspects') !== null")
    assert_quiet(tab)


def test_pictures_and_figures_have_names(tab, page, comparison, embeddings):
    for path in (page, comparison):
        tab.open(path)
        pictures = tab.get("[...document.querySelectorAll('img')].map((one) => [one.title, one.alt])")
        assert len(pictures) > 10
        first = {key: embeddings.texts[5 * place] for place, key in enumerate(embeddings.image_keys)}
        assert [alt for _, alt in pictures] == [first[key] for key, _ in pictures]
        figures = tab.get("[...document.querySelectorAll('svg')].map((one) => [one.role, one.ariaLabel])")
        assert all(role == "img" and re.search(" (against|by) ", label) for role, label in figures), figures


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
