"""The report: complete, self-contained, and deaf to what captions try."""

import base64
import hashlib
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval import evaluate
from retrieval_eval.comparison import compare
from retrieval_eval.cross_check import cross_check
from retrieval_eval.folds import MeasuredFold
from retrieval_eval.metrics import notes
from retrieval_eval.page import payload, write_comparison, write_report
from retrieval_eval.page import query_results as query_results_module
from retrieval_eval.page.times import shares, time_figure
from retrieval_eval.uncertainty import clusters_of
from tests.retrieval_eval.pages import NASTY, Page, measured, thumbnail


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
    return measured(embeddings)


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
        intervals={"rsum": (401.25, 433.5), "i2t/r1": (12.0, 34.0), "t2i/map5": (0.25, 0.375)},
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
        for name in ("map5", "map_cut5", "mrr", "ndcg", "r_precision", "map_r"):
            assert f"{report.metrics[f'{direction}/{name}']:.3f}" in text
    assert f"RSUM {report.metrics['rsum']:.1f}" in text
    for note in notes(report.metrics):
        assert f"{note}." in text
    # Two positives among 24 captions, one among 12 images; R@10 by chance: 1 - (14·13)/(24·23) and 10/12.
    assert f"by chance {200 / 24:.1f}" in text
    assert f"{100 * (1 - 14 * 13 / (24 * 23)):.1f}" in text
    assert f"by chance {100 / 12:.1f}" in text


def test_intervals_stand_beside_their_numbers(page, report):
    text = page.text["result"]
    assert f"{report.metrics['rsum']:.1f} 401.2–433.5" in text
    assert f"{report.metrics['i2t/r1']:.1f} 12.0–34.0" in text
    assert f"{report.metrics['t2i/map5']:.3f} .250–.375" in text


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


def test_nothing_comes_from_outside_and_only_the_pages_own_scripts_run(source, page):
    assert "http" not in re.sub(r"http-equiv", "", source)
    assert "@import" not in source
    assert "eval(" not in source
    assert "innerHTML" not in source
    assert not any(page.all(tag) for tag in ("iframe", "object", "embed", "base", "b"))
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert re.match("#|data:,$", attributes.get(name) or "#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))
    rules = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    run = [text for attributes, text in page.scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert rules["script-src"] == " ".join(f"'sha256-{value}'" for value in hashes)


def test_captions_and_keys_are_text(source, page):
    assert source.count("<script") == 4
    assert not page.all("img")  # the one in the caption is text
    assert page.json("data")["texts"][4] == NASTY
    assert page.json("data")["keys"][11] == '"><script>key</script>'
    assert "scenes & <b>friends</b>" in page.text["top"]


def test_each_picture_is_there_once(page, embeddings):
    pictures = page.json("pictures")
    for uri, file in zip(pictures[:11], embeddings.thumbnails, strict=False):
        assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == file
    assert pictures[11] is None  # the GIF


def test_queries_with_answers_and_positives_equal_sorted_scores(page, embeddings):
    data = page.json("data")
    scores_IC = embeddings.images @ embeddings.captions.T
    for direction, scores, ids, others in (
        ("i2t", scores_IC, embeddings.image_ids, embeddings.caption_ids),
        ("t2i", scores_IC.T, embeddings.caption_ids, embeddings.image_ids),
    ):
        queries = data["runs"][0]["queries"][direction]
        for query, row in enumerate(scores):
            order = np.argsort(-row)
            five = slice(5 * query, 5 * query + 5)
            assert queries["answers"][five] == order[:5].tolist()
            assert queries["scores"][five] == pytest.approx(row[order[:5]], abs=6e-4)
            assert queries["right"][five] == "".join("01"[int(hit)] for hit in others[order[:5]] == ids[query])
            best = [item for item in order if others[item] == ids[query]]
            assert queries["positives"][query] == best
            assert queries["ranks"][query] == [1 + (row > row[item]).sum() for item in best]
            assert queries["similarities"][query] == pytest.approx(row[best], abs=6e-4)
            assert queries["rank"][query] == queries["ranks"][query][0]
        worst = data["orders"]["worst"][direction]
        assert sorted(worst) == list(range(len(scores)))
        assert queries["rank"][worst[0]] == max(queries["rank"])
    assert data["own"] == [[2 * i, 2 * i + 1] for i in range(12)]


def test_examples_are_of_different_images(page, report):
    assert page.sections == ["result", "training", "ranks", "queries", "i2t", "t2i", "suspects", "facts"]
    chosen = page.json("data")["examples"]
    assert chosen["i2t"]["worst"][0] == report.ranks["i2t"].expected.argmax()
    for direction in ("i2t", "t2i"):
        for kind in ("worst", "best"):
            images = [query // (1 if direction == "i2t" else 2) for query in chosen[direction][kind]]
            assert len(set(images)) == len(images) == 6


def test_curves_are_drawn_in_the_pages_colours(source, page):
    for heading in ("Loss", "RSUM", "Recall", "Similarity"):
        assert heading in page.text["training"]
    for heading in ("Recall@k", "Ranks in classes", "Similarity, i2t", "Similarity, t2i"):
        assert heading in page.text["ranks"]
    assert len(page.all("svg")) == 8
    assert all("viewbox" in svg for svg in page.all("svg"))
    assert "var(--first)" in source
    assert "#0101" not in source  # every stand-in colour was replaced
    assert "DejaVu" not in source
    assert "light-dark(" in source


def test_figures_say_what_they_show(page, compared, report):
    labels = [svg["aria-label"] for svg in page.all("svg", role="img")]
    assert len(labels) == len(page.all("svg"))
    assert labels[0] == (
        "Loss against epoch. train: first 2 at 0.5, last 1 at 1.5, lowest 1 at 1.5;"
        " val: first 1.9 at 1, last 1.5 at 2, lowest 1.5 at 2."
    )
    assert labels[1] == "RSUM against epoch. RSUM: first 210 at 1, last 250 at 2, highest 250 at 2."
    assert labels[2].endswith("t2i R@1: first 18 at 1, last 22 at 2, highest 22 at 2.")
    ranks = report.ranks["i2t"].expected
    shares = ", ".join(f"{report.metrics[f'i2t/r{k}']:.1f} at {k}" for k in (1, 5, 10))
    assert f"within the first k, against k. i2t: {shares}, 100 from {ranks.max():.0f}; t2i: " in labels[4]
    first, middle = (100 * np.mean((low < ranks) & (ranks <= high)) for low, high in ((0, 1), (1, 5)))
    assert f"rank of their best right answer. i2t: {first:.0f} at 1, {middle:.0f} at 2–5, " in labels[5]
    scores = report.counts["i2t"].score
    assert labels[6].startswith(f"Percent by score, i2t. positives: lowest {scores.min():.3f}, half of them below ")
    assert f", highest {scores.max():.3f}; hardest negatives: lowest " in labels[6]
    _, reports, comparison = compared
    both = [svg["aria-label"] for svg in comparison.all("svg", role="img")]
    assert len(both) == len(comparison.all("svg")) == 2
    r1 = [one.metrics["t2i/r1"] for one in reports]
    assert f"against k t2i. a <b>run</b>: {r1[0]:.1f} at 1, " in both[1]
    assert f"another: {r1[1]:.1f} at 1, " in both[1]


def test_the_loss_is_drawn_for_one_batch_size(embeddings, report, tmp_path):
    def row(step, loss, **more):
        return {"step": step, "epoch": step / 3, "train/loss": loss, "train/positive_similarity": loss / 10, **more}

    sizes = [(3.0, 128), (2.5, 128), (0.5, 32), (2.0, 128), (1.5, 128), (0.25, 32)]
    told = [row(step, loss, **{"train/batch": batch}) for step, (loss, batch) in enumerate(sizes, 1)]
    silent = [row(step, loss) for step, (loss, _) in enumerate(sizes, 1)]
    wanted = {
        "told": (
            "first 3 at 0.3333, last 1.5 at 1.667, lowest 1.5 at 1.667",
            " without 2 last batches of an epoch with other than 128 pairs",
        ),
        "silent": ("first 3 at 0.3333, last 0.25 at 2, lowest 0.25 at 2", ""),  # an older run's rows do not tell
    }
    for name, history in (("told", told), ("silent", silent)):
        path = write_report(tmp_path / f"{name}.html", embeddings, report, history=history)
        page = Page(path.read_text(encoding="utf-8"))
        words, note = wanted[name]
        assert f"train: {words}." in page.all("svg")[0]["aria-label"]
        assert page.text["training"].startswith(f"Training Loss{note}")
        assert ("last 0.025 at 2" in page.all("svg")[1]["aria-label"]) == (name == "silent")


def test_the_time_of_a_step_is_drawn_by_part():
    """Two rows of 10 and 30 steps: read 1 and 5 ms, encode 9 and 13, a hundredth copied."""
    times = [
        {"step": 10, "epoch": 1, "train/ms_read": 1.0, "train/ms_copy": 0.1, "train/ms_encode": 9.0},
        {"step": 15, "epoch": 1, "val/rsum": 3.0},
        {"step": 40, "epoch": 4, "train/ms_read": 5.0, "train/ms_copy": 0.1, "train/ms_encode": 13.0},
    ]
    whole = 10 * 10.1 + 30 * 18.1
    assert shares(times) == pytest.approx({"read": 160 / whole, "copy": 4 / whole, "encode": 480 / whole})
    figure = time_figure(times)
    assert (
        'aria-label="Milliseconds a step by part against epoch. read: 25% of the time, 4 ms a step on average; '
        'encode: 75% of the time, 12 ms a step on average; other: 1% of the time, 0.1 ms a step on average."'
    ) in figure.svg
    assert {"var(--part-1)", "var(--part-3)"} <= set(re.findall(r"var\([^)]*\)", figure.svg))
    assert "#01" not in figure.svg
    assert time_figure(times[:2]) is None
    assert shares(times[1:2]) == shares([]) == {}


def test_without_history_and_embeddings(report, tmp_path):
    page = Page(write_report(tmp_path / "report.html", None, report).read_text(encoding="utf-8"))
    assert page.sections == ["result", "ranks", "facts"]
    assert len(page.all("svg")) == 2
    assert not page.all("script", id="data")


def test_ties_are_shown_three_ways(embeddings, tmp_path):
    same = np.ones_like(embeddings.images), np.ones_like(embeddings.captions)
    collapsed = evaluate(*same, embeddings.image_ids, embeddings.caption_ids)
    flat = EmbeddingSet(
        *same, embeddings.image_ids, embeddings.caption_ids, embeddings.image_keys, embeddings.texts, split="test"
    )
    page = Page(write_report(tmp_path / "report.html", flat, collapsed).read_text(encoding="utf-8"))
    assert "36 queries tie with a wrong answer" in page.text["result"]
    for treatment in ("optimistic 100.0", f"expected {100 / 12:.1f}", "pessimistic 0.0"):
        assert treatment in page.text["result"]
    assert page.json("data")["runs"][0]["queries"]["i2t"]["tied"]["3"] == [1, 23]
    assert set(page.json("pictures")) == {None}


def test_one_direction_alone(tmp_path):
    one_way = evaluate(np.eye(4)[:2], np.eye(4), [0, 1], range(4), both_directions=False)
    page = Page(write_report(tmp_path / "report.html", None, one_way).read_text(encoding="utf-8"))
    assert "RSUM" not in page.text["result"]


def test_other_embeddings_are_refused(embeddings, tmp_path):
    other = evaluate(np.eye(4), np.eye(4), range(4), range(4))
    with pytest.raises(UserError, match="i2t has 4 queries and 4 gallery items, the embeddings have 12 and 24"):
        write_report(tmp_path / "report.html", embeddings, other)


def test_of_too_many_queries_every_other_one_is_shown(embeddings, report, tmp_path, monkeypatch):
    monkeypatch.setattr(query_results_module, "LISTED", 13)
    page = Page(write_report(tmp_path / "report.html", embeddings, report).read_text(encoding="utf-8"))
    data = page.json("data")
    assert [direction["total"] for direction in data["directions"]] == [12, 24]
    queries = data["runs"][0]["queries"]["t2i"]
    assert [data["texts"][place] for place in queries["rows"]] == embeddings.texts[::2]
    ranks = report.ranks["t2i"].expected[::2].tolist()
    assert queries["rank"] == ranks
    assert [row[0] for row in queries["ranks"]] == ranks


def test_some_queries_against_the_full_gallery(embeddings, tmp_path):
    rows = np.array([3, 7])
    images = embeddings.images[rows]
    some = evaluate(images, embeddings.captions, rows, embeddings.caption_ids, both_directions=False)
    path = write_report(tmp_path / "report.html", embeddings, some, rows={"i2t": rows})
    data = Page(path.read_text(encoding="utf-8")).json("data")
    queries = data["runs"][0]["queries"]["i2t"]
    assert [data["keys"][place] for place in queries["rows"]] == ["picture-3", "picture-7"]
    assert [[data["texts"][place] for place in sorted(row)] for row in queries["positives"]] == [
        embeddings.texts[6:8],
        embeddings.texts[14:16],
    ]


@pytest.fixture(scope="module")
def compared(embeddings, report, tmp_path_factory):
    """The page of two runs, the second of which answers as the first but for image 0 and its captions."""
    images = embeddings.images.copy()
    images[0] = -images[0]
    worse = replace(embeddings, images=images)
    reports = report, measured(worse)
    parts = [[MeasuredFold(one, {}, {}, clusters_of(one))] for one in reports]
    found = compare(*parts, ("a <b>run</b>", "another"))
    path = tmp_path_factory.mktemp("compared") / "page.html"
    write_comparison(path, found, (embeddings, worse), reports, facts={"Split": "test"})
    return found, reports, Page(path.read_text(encoding="utf-8"))


def test_a_comparison_has_every_metric_of_both_runs(compared):
    found, _, page = compared
    text = page.text["result"]
    assert "a <b>run</b>" in text
    assert not page.all("b")
    for name, change in found.changes.items():
        places = 3 if name.rsplit("/")[-1] in ("map5", "map_cut5", "mrr", "ndcg", "r_precision", "map_r") else 1
        line = f"{change.first:.{places}f} {change.second:.{places}f} {change.difference:+.{places}f}"
        assert line.replace("-", "−") in text, name
    assert all(f"{note}." in text for note in notes(found.changes))
    assert "bootstrap over 12 images" in text
    assert "Split test" in page.text["facts"]


def test_a_comparison_counts_and_sorts_wins_and_losses(compared):
    found, reports, page = compared
    data = page.json("data")
    assert [run["name"] for run in data["runs"]] == list(found.names)
    for direction in ("i2t", "t2i"):
        before, after = (report.ranks[direction].expected for report in reports)
        for kind, change in (("wins", before - after), ("losses", after - before)):
            shown = data["orders"][kind][direction]
            assert sorted(shown) == np.flatnonzero(change > 0).tolist()
            assert (np.diff(change[shown]) <= 0).all()
        counts = (
            f"another wins {(after < before).sum()}, loses {(after > before).sum()}, same {(after == before).sum()}"
        )
        assert counts in page.text["ranks"]
        for run, ranks in zip(data["runs"], (before, after), strict=True):
            assert run["queries"][direction]["rank"] == ranks.tolist()
    assert len(data["orders"]["losses"]["i2t"]) > 0
    assert len(data["orders"]["wins"]["t2i"]) > 0


def test_a_comparison_without_embeddings(compared, tmp_path):
    found, reports, _ = compared
    page = Page(write_comparison(tmp_path / "page.html", found, None, reports).read_text(encoding="utf-8"))
    assert page.sections == ["result", "ranks"]
    assert not page.all("script", id="data")


def test_pictures_over_the_limit_are_left_out(embeddings, report, tmp_path, monkeypatch):
    uris = [payload.data_uri(file) for file in embeddings.thumbnails[:11]]
    monkeypatch.setattr(payload, "PICTURES", len(uris[0]) + len(uris[1]))
    page = Page(write_report(tmp_path / "report.html", embeddings, report).read_text(encoding="utf-8"))
    assert sum(picture is not None for picture in page.json("pictures")) == 2
