"""The engine faiss beside the count: the same recalls, ties included, and what it says where it cannot know."""

import importlib
import json
import logging
import sys

import faiss
import numpy as np
import pytest
import torch

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval import evaluate, inputs
from retrieval_eval.indexes import probe
from retrieval_eval.measure import CountingOptions, measure
from retrieval_eval.metrics import METRICS
from retrieval_eval.page import write_report
from retrieval_eval.positives import Positives
from retrieval_eval.protocols import Protocol
from retrieval_eval.searched import agreement as agreement_module
from retrieval_eval.searched import lists as lists_module
from retrieval_eval.searched import search as search_module
from retrieval_eval.searched.agreement import agreement
from retrieval_eval.searched.placing import level, place, twins_of
from retrieval_eval.shortlist import Shortlist
from retrieval_eval.subset import Subset
from retrieval_eval.uncertainty import intervals

EVERY_RANK = {metric.name for metric in METRICS if metric.every_rank}


def pairs(images=150, seed=0):
    """Images with one to five captions, in no order, of lengths that differ."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(images), rng.integers(1, 6, images)))
    queries = rng.normal(size=(images, 12)).astype(np.float32)
    gallery = (queries[ids] + 1.2 * rng.normal(size=(len(ids), 12))).astype(np.float32)
    return queries, gallery, np.arange(images), ids


def changed(change):
    queries, gallery, *ids = pairs()
    return (*change(queries, gallery), *ids)


CASES = {
    "unequal numbers of captions": (pairs(), {}),
    "cosine": (pairs(), {"cosine": True}),
    "collapsed": (changed(lambda Q, G: (np.ones_like(Q), np.ones_like(G))), {}),
    "copies": (changed(lambda Q, G: (Q[np.arange(len(Q)) % 9], G[np.arange(len(G)) % 31])), {}),
    "ties by rounding": (changed(lambda Q, G: (np.round(Q), np.round(G))), {}),
    "a gallery smaller than a list": (pairs(20), {}),
    "one item": ((np.ones((1, 4)), np.ones((1, 4)), [0], [0]), {}),
    "one way": (pairs(), {"both_directions": False}),
    "other recalls": (pairs(), {"ks": (2, 130)}),
    "half precision": (changed(lambda Q, G: (torch.from_numpy(Q).bfloat16(), torch.from_numpy(G).bfloat16())), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_recalls_are_the_counted_ones(case):
    given, options = CASES[case]
    counted, searched = (evaluate(*given, engine=engine, **options) for engine in ("exact", "faiss"))
    named = {name for name in counted.metrics if name.split("/")[-1] not in EVERY_RANK}
    assert searched.metrics.keys() == named
    for treatment, metrics in searched.ties.items():
        assert metrics == {name: counted.ties[treatment][name] for name in named}
    for direction, values in searched.per_query.items():
        assert all((each == counted.per_query[direction][name]).all() for name, each in values.items())
        # Every rank that it tells is the counted one, whichever way ties fall.
        told = searched.ranks[direction].optimistic <= searched.depth
        for treatment in ("optimistic", "expected", "pessimistic"):
            ranks = [getattr(report.ranks[direction], treatment) for report in (searched, counted)]
            assert (ranks[0][told] == ranks[1][told]).all()
        assert (counted.ranks[direction].optimistic[~told] > searched.depth).all()
    found = agreement(searched)
    assert set(found.differences.values()) == {0}
    assert set(found.same_rank.values()) == {100}
    assert set(found.left_out) == EVERY_RANK
    assert agreement(counted) is None


def test_a_tie_that_ends_beyond_a_list_is_counted(monkeypatch):
    """Forty copies of one caption fill the places of some images, and no list of eleven ends them."""
    monkeypatch.setattr(search_module, "DEPTH", 10)
    queries, gallery, *ids = pairs()
    gallery[:40] = 3 * queries[7]
    counted, searched = (evaluate(queries, gallery, *ids, engine=engine) for engine in ("exact", "faiss"))
    assert searched.metrics == {name: counted.metrics[name] for name in searched.metrics}
    found = agreement(searched)
    above = counted.ranks["i2t"].optimistic[7] == 1
    assert above
    assert 1 <= found.counted["i2t"] < 150  # those images alone
    assert found.counted["t2i"] == 0
    assert f"ties reach beyond those of {found.counted['i2t']} i2t queries, which are counted" in found.engine


def test_a_list_places_what_it_can():
    """By hand: a tie at places 2 and 3, another that the end of the list cuts, and an answer that is nowhere."""
    scores = np.array([[9, 8, 8, 7, 7]], np.float32)
    asking, answering = torch.ones(1, 1), torch.tensor([[9.0], [8], [8], [7], [7], [7], [1]])
    positives = Positives.from_lists([[1, 4, 6]], 7)
    placed = place(asking, answering, positives, np.array([[0, 1, 2, 3, 4]]), scores)
    assert placed.known.tolist() == [3]
    assert placed.counts.greater.tolist() == [1, 3, 3]  # the last two: at least three are above
    assert placed.counts.equal[0] == 2
    assert placed.counts.score.tolist() == [8, 7, 1]


def test_one_vector_has_one_score():
    """A product may round otherwise at the edge of a block: copies then take the best of their scores."""
    gallery = torch.tensor([[1.0, 2], [0.0, -0.0], [1, 2], [-0.0, 0], [5, 6]])
    twins = twins_of(gallery)
    assert twins[0] == twins[2] and twins[1] == twins[3]  # noqa: PT018
    assert len(set(twins.tolist())) == 3
    found, scores = level(
        np.array([[0, 4, 2, 1, 3]]), np.array([[0.5, 0.4999, 0.4998, 0.1, 0.0999]], np.float32), twins
    )
    assert found.tolist() == [[0, 2, 4, 1, 3]]
    assert scores.tolist() == [np.array([0.5, 0.5, 0.4999, 0.1, 0.1], np.float32).tolist()]


def test_a_search_that_is_wrong_is_told(monkeypatch):
    given = pairs()

    def careless(asking, answering, k, *, done):
        order = np.argsort(-(asking @ answering.T).numpy(), axis=1)[:, 1 : k + 1]  # never the best one
        return Shortlist(np.take_along_axis((asking @ answering.T).numpy(), order, 1), order, "faiss-cpu")

    monkeypatch.setattr(lists_module, "shortlist", careless)
    searched, counted = evaluate(*given, engine="faiss"), evaluate(*given)
    found = agreement(searched)
    for name, difference in found.differences.items():
        assert difference == pytest.approx(searched.metrics[name] - counted.metrics[name])
    assert found.differences["i2t/r1"] < -10
    ranks = [report.ranks["t2i"].expected for report in (searched, counted)]
    same = (ranks[0] == ranks[1]) | ((ranks[0] > 100) & (ranks[1] > 100))
    assert found.same_rank["t2i"] == pytest.approx(100 * same.mean())
    assert f"i2t R@1 {found.differences['i2t/r1']:+.4g}" in found.compared


def test_of_many_queries_a_seeded_sample_is_counted(monkeypatch):
    monkeypatch.setattr(agreement_module, "PAIRS", 150 * 60)
    monkeypatch.setattr(agreement_module, "FEWEST", 10)
    given = pairs()
    searched = evaluate(*given, engine="faiss")
    found = agreement(searched)
    captions = len(given[1])
    assert found.queries == {"i2t": 150 * 60 // captions, "t2i": 60}
    assert f"{found.queries['i2t']} of 150 i2t and 60 of {captions} t2i queries (drawn with seed 0)" in found.compared
    assert set(found.same_rank.values()) == {100}
    rows = searched.searched["t2i"].compared
    assert (rows == evaluate(*given, engine="faiss").searched["t2i"].compared).all()
    assert len(set(rows.tolist())) == 60


def test_progress_counts_queries_up_to_the_end(monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK", 12 * 50)
    heard = []
    given = pairs()
    evaluate(*given, engine="faiss", progress=lambda done, total: heard.append((done, total)))
    queries = 2 * (150 + len(given[1]))
    assert {total for _, total in heard} == {queries}
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[0] == (0, queries)
    assert heard[-1] == (queries, queries)
    assert len({done for done, _ in heard}) > 10  # within the directions too


def embedding_set(images=150):
    queries, gallery, image_ids, ids = pairs(images)
    texts = [f"caption {row}" for row in range(len(ids))]
    return EmbeddingSet(queries, gallery, image_ids, ids, [f"image {i}" for i in image_ids], texts)


@pytest.mark.parametrize("subset", [None, Subset(np.arange(0, 400, 3), {})])
def test_folds_and_subsets(subset):
    protocol = Protocol("thirds", "any", folds=3)
    counted, searched = (
        measure(embedding_set(), protocol, subset, CountingOptions(engine=engine)) for engine in ("exact", "faiss")
    )
    assert searched.report.metrics == {name: counted.report.metrics[name] for name in searched.report.metrics}
    found = agreement(searched.report)
    assert found.queries == {name: counted.report.queries(name) for name in counted.report.directions}
    assert set(found.same_rank.values()) == {100}
    assert searched.manifest["engine"]["compared_queries"] == found.queries
    assert counted.manifest["engine"] == {"name": "exact"}
    bounds = [
        intervals([fold.report for fold in each.folds], [fold.clusters for fold in each.folds], resamples=50)
        for each in (searched, counted)
    ]
    assert bounds[0] == {name: bounds[1][name] for name in bounds[0]}


@pytest.fixture
def command(in_process):
    return in_process(importlib.import_module("retrieval_eval.evaluate.__main__").app)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    embedding_set(400).write(folder / "embeddings" / "test")
    return folder


def test_the_command_says_what_searched_and_how_it_agrees(command, run, tmp_path):
    code, out, err = command("--run", run, "--engine", "faiss", "--out", tmp_path / "out", "--approximate", "ivf")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "engine: faiss (faiss-cpu, flat), which tells ranks up to 100" in lines
    (said,) = (line for line in lines if line.startswith("agreement: "))
    assert "the exact count of 400 i2t and " in said
    assert "no metric differs; the same rank, or beyond 100 in both: i2t 100.00 %, t2i 100.00 %" in said
    assert "left out: median rank, mean rank, MRR, nDCG, R-Precision, mAP@R, which need every rank" in out
    assert "approximate (ivf, faiss-cpu): gap to exact" in out
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["manifest"]["engine"]["by"] == "faiss-cpu, flat"
    assert record["metrics"].keys() == record["manifest"]["engine"]["differences"].keys()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "which tells ranks up to 100" in page
    assert "no metric differs" in page
    assert '"depth":100' in page
    exact = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert command("--run", run, "--out", tmp_path / "exact")[0] == 0
    counted = json.loads((tmp_path / "exact" / "metrics.json").read_text())["metrics"]
    assert exact == {name: counted[name] for name in exact}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "fiass"], "unknown engine 'fiass'; did you mean 'faiss'? (accepted: exact, faiss)"),
        (["--engine", "faiss", "--export", "x"], "--export is for --engine exact: it keeps what is counted"),
        (["--engine", "faiss", "--state", "x"], "--state is for --engine exact: it keeps what is counted"),
        (["--engine", "faiss", "--shards", "0"], "shards=0: the smaller gallery has"),
    ],
)
def test_mistakes_are_one_line(command, run, tmp_path, monkeypatch, arguments, said):  # noqa: PLR0917 -- fixtures
    monkeypatch.chdir(tmp_path)
    code, out, err = command("--run", run, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_faiss_the_engine_names_the_extras(command, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    code, _, err = command("--run", run, "--engine", "faiss")
    assert code == 2
    assert err.startswith("error: --engine faiss needs FAISS (")
    assert err.endswith("; install the extra faiss-cpu or faiss-gpu\n")
    with pytest.raises(UserError, match="state keeps the finished work of a count"):
        evaluate(*pairs(20), engine="faiss", state=run)


def test_a_build_that_dies_on_its_gpu_searches_on_the_cpu(monkeypatch, tmp_path, caplog):
    """The probe runs as it is, in a process of its own, on a build that aborts as one without the card's kernels."""
    (tmp_path / "faiss.py").write_text(
        "import os\nclass GpuMultipleClonerOptions: pass\nclass IndexFlatIP:\n    def __init__(self, d): pass\n"
        "def index_cpu_to_all_gpus(index, options): os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    probe.backend.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            searched = evaluate(*pairs(20), engine="faiss")
    finally:
        probe.backend.cache_clear()
    assert searched.searched["i2t"].by == "faiss-cpu, flat"
    (record,) = caplog.records
    assert record.getMessage() == "FAISS cannot search on this GPU (exit code -6): searching on the CPU"


def test_a_page_tells_no_rank_beyond_the_depth(tmp_path):
    embeddings = embedding_set()
    report = evaluate(
        embeddings.images, embeddings.captions, embeddings.image_ids, embeddings.caption_ids, engine="faiss"
    )
    text = write_report(tmp_path / "page.html", embeddings, report).read_text()
    data = json.loads(text.split('id="data"')[1].split(">", 1)[1].split("</script>", 1)[0])
    for direction, queries in data["runs"][0]["queries"].items():
        assert queries["depth"] == report.depth == 100
        assert max(queries["rank"]) <= 101
        beyond = (report.ranks[direction].optimistic > 100).sum()
        assert sum(rank == 101 for rank in queries["rank"]) == beyond
        assert max(max(ranks) for ranks in queries["ranks"]) <= 101
    assert "Median and mean are" not in text
