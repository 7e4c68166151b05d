"""Approximate indexes: what is built for which gallery, how their gap is told, and what is refused."""

import builtins
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from allpairs.errors import UserError
from retrieval_eval import approximate as module
from retrieval_eval import evaluate
from retrieval_eval.approximate import gap_table, measure_gap
from retrieval_eval.indexes.build import build, search
from retrieval_eval.indexes.parameters import APPROXIMATE, plan
from retrieval_eval.inputs import pair_where_they_lie


def gallery_of(items, captions=2, width=16, noise=0.5, seed=3):
    """Normalised images and captions that are found, but not always first."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.arange(items).repeat_interleave(captions)
    images = torch.nn.functional.normalize(torch.randn(items, width, generator=rng))
    captions = torch.nn.functional.normalize(images[ids] + noise * torch.randn(len(ids), width, generator=rng))
    return images, captions, torch.arange(items), ids


@pytest.fixture(scope="module")
def embeddings():
    return gallery_of(700)


@pytest.fixture(scope="module")
def report(embeddings):
    return evaluate(*embeddings)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_gap_is_what_the_index_itself_gives(embeddings, report, kind):
    images, captions, image_ids, caption_ids = embeddings
    gap = measure_gap(images, captions, report, kind)
    assert list(gap.recalls) == [f"{direction}/r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]
    # Written out for the second direction: an index of the same plan, hits by ids, the exact top k by sorting.
    found = search(build(images, plan(kind, len(images)), 10)[0], captions, 10)[1]
    order = np.argsort(-(captions.double().numpy() @ images.double().numpy().T), axis=1)
    for k in (1, 5, 10):
        at = gap.recalls[f"t2i/r{k}"]
        hits = [caption_ids[q] in image_ids[row[row >= 0]] for q, row in enumerate(found[:, :k])]
        shared = [len(set(row) & set(best)) for row, best in zip(found[:, :k], order[:, :k], strict=True)]
        assert at.exact == report.metrics[f"t2i/r{k}"]
        assert at.approximate == pytest.approx(100 * np.mean(hits))
        assert at.difference == pytest.approx(100 * np.mean(hits) - report.metrics[f"t2i/r{k}"])
        assert at.found == pytest.approx(100 * np.mean(shared) / k, abs=0.02)  # rounding lets equals through
    if kind == "hnsw":  # a graph over so few items loses nothing: then the gap is 0, not nearly
        assert {(at.found, at.difference) for at in gap.recalls.values()} == {(100, 0)}
    else:
        assert all(10 < at.found < 100 for at in gap.recalls.values())  # chance finds 1.4 % of ten in 700
    assert all(index.build_seconds > 0 and index.search_seconds > 0 for index in gap.indexes.values())


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_same_gap_every_time(embeddings, report, kind):
    first, second = (measure_gap(*embeddings[:2], report, kind).recalls for _ in range(2))
    assert first == second


def test_one_line_names_the_largest_gap(embeddings, report):
    gap = measure_gap(*embeddings[:2], report, "ivf")
    line = str(gap)
    assert "\n" not in line
    worst = max(gap.recalls.values(), key=lambda at: abs(at.difference))
    assert f"gap to exact {worst.difference:+.2f} points at most" in line
    assert f"{min(at.found for at in gap.recalls.values()):.2f} % of the exact answers" in line
    console = Console(record=True, width=140, file=StringIO())
    console.print(gap_table(gap))
    shown = console.export_text()
    for name, at in gap.recalls.items():
        row = next(line for line in shown.splitlines() if line.strip().startswith(name))
        assert row.split()[1:4] == [f"{at.exact:.2f}", f"{at.approximate:.2f}", f"{at.difference:+.2f}"]
    assert "lists" in shown


def test_equal_items_count_as_found():
    """Twenty copies of each vector: whichever of them an index returns, it found the exact top k."""
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.standard_normal((10, 8)), 20, axis=0).astype(np.float32)
    queries = gallery[::20]
    report = evaluate(queries, gallery, list(range(10)), np.repeat(np.arange(10), 20), both_directions=False)
    gap = measure_gap(queries, gallery, report, "hnsw")
    assert gap.recalls["i2t/r10"].found == 100
    assert set(gap.indexes) == {"i2t"}


def test_places_that_an_index_leaves_empty_are_no_hits():
    """One list of two is searched, and it holds fewer than ten items: the rest of the row is empty, not item 0."""
    gallery = np.vstack([np.tile([[1.0, 0]], (90, 1)), np.tile([[0, 1.0]], (4, 1))]).astype(np.float32)
    gallery += np.random.default_rng(1).normal(0, 0.01, gallery.shape).astype(np.float32)
    chosen = plan("ivf", 94)
    assert (chosen.lists, chosen.probes) == (2, 2)
    index, _ = build(torch.from_numpy(gallery), chosen, 10)
    index.nprobe = 1
    _, found = search(index, torch.tensor([[0.0, 1.0]]), 10)
    assert sorted(found[0, :4]) == [90, 91, 92, 93]
    assert (found[0, 4:] == -1).all()


def test_an_index_that_finds_nothing_has_no_recall(embeddings, report, monkeypatch):
    monkeypatch.setattr(module, "search", lambda index, queries, k: (None, np.full((len(queries), k), -1)))
    gap = measure_gap(*embeddings[:2], report, "ivf")
    assert {(at.approximate, at.found) for at in gap.recalls.values()} == {(0, 0)}
    assert gap.recalls["i2t/r1"].difference == -report.metrics["i2t/r1"]


def test_parameters_follow_the_size():
    assert plan("ivf", 1_000_000).lists == 4000
    assert (plan("ivf", 25_000).lists, plan("ivf", 25_000).probes) == (632, 39)
    assert plan("ivf", 5_000).lists == 128  # 39 items per list rather than four roots of the size
    assert plan("pq", 25_000).bits == 8
    assert not plan("pq", 25_000).note
    assert plan("pq", 5_000).bits == 7
    assert plan("pq", 5_000).note == (
        "the gallery is small for pq (5,000 items): 7-bit codes are used instead of 8-bit ones, which take 9,984 items"
    )
    assert plan("ivf", 200).note == "the gallery is small for ivf (200 items): all 5 lists are searched"
    assert " and " in plan("ivfpq", 624).note or plan("ivfpq", 624).lists > 8
    assert not plan("hnsw", 3).note


def test_small_galleries_say_what_is_used_instead(embeddings, report):
    line = str(measure_gap(*embeddings[:2], report, "pq"))
    assert line.endswith("the gallery of t2i is small for pq (700 items): 4-bit codes are used instead of 8-bit ones,"
                         " which take 9,984 items")  # fmt: skip
    assert "the gallery of i2t is small for pq (1,400 items): 5-bit" in line


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ivf", "the gallery of t2i has 60 items, too few for ivf: its k-means needs 78; accepted: hnsw, or exact"),
        ("pq", "the gallery of i2t has 120 items, too few for pq: its k-means needs 624; accepted: hnsw, or exact"),
        ("ivfpq", "the gallery of i2t has 120 items, too few for ivfpq: its k-means needs 624"),
        ("hsnw", "unknown approximate index 'hsnw'; did you mean 'hnsw'"),
        ("annoy", r"unknown approximate index 'annoy'.*ivf, hnsw, pq, ivfpq"),
    ],
)
def test_refusals(kind, said):
    few = gallery_of(60)
    with pytest.raises(UserError, match=said):
        measure_gap(*few[:2], evaluate(*few), kind)


def test_dimensions_that_codes_do_not_divide():
    """Ten dimensions make three codes of four; the two zeros that fill the last one change no product."""
    images, captions, _, _ = gallery_of(700, width=10)
    index, _ = build(images, plan("pq", 700), 10)
    assert index.d == 12
    _, found = search(index, captions, 10)
    exact = np.argsort(-(captions @ images.T).numpy(), axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]) > 3


def test_without_faiss_there_is_no_index(embeddings, report, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return real(name, *rest)

    Q, _ = pair_where_they_lie(*embeddings[:2])
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs FAISS .*faiss-cpu or faiss-gpu"):
        build(Q, plan("hnsw", len(Q)), 10)
