"""Scorers: every metric against a ranking written out, ties, misses, refusals, and any number of workers."""

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
import ray
import torch

from allpairs.errors import UserError
from retrieval_eval import evaluate, inputs
from retrieval_eval.positives import Positives
from retrieval_eval.rerank import over_actors, rerank, score_all, shortlisted

IMAGES, CAPTIONS = 30, 90


class Scene:
    """Pooled vectors that are half right, and a scorer whose answers are a table."""

    def __init__(self, seed=7):
        rng = np.random.default_rng(seed)
        self.caption_ids = rng.permutation(np.repeat(np.arange(IMAGES), 3))
        self.image_ids = np.arange(IMAGES)
        self.images = rng.standard_normal((IMAGES, 12)).astype(np.float32)
        self.captions = (self.images[self.caption_ids] + 1.6 * rng.standard_normal((CAPTIONS, 12))).astype(np.float32)
        self.right = self.image_ids[:, None] == self.caption_ids
        self.table = (rng.standard_normal((IMAGES, CAPTIONS)) + 1.5 * self.right).astype(np.float32)
        self.first = evaluate(self.images, self.captions, self.image_ids, self.caption_ids)
        self.calls = []

    def pairs(self, queries, items):
        self.calls.append((len(queries), len(items)))
        return self.table[queries, items]

    def tiles(self, queries, items):
        self.calls.append((len(queries), len(items)))
        return torch.from_numpy(self.table[np.ix_(queries, items)])

    def rerank(self, score=None, **options):
        return rerank(score or self.pairs, self.images, self.captions, self.first, **options)


@pytest.fixture
def scene():
    return Scene()


def places(right, first, second, k):
    """Per query the ranks of its positives, best first, in a list that is sorted twice, item by item."""
    found = []
    for row in range(len(right)):
        order = sorted(range(right.shape[1]), key=lambda item: -first[row, item])
        order = sorted(order[:k], key=lambda item: -second[row, item]) + order[k:]
        found.append([rank for rank, item in enumerate(order, start=1) if right[row, item]])
    return found


def metrics(found):
    """The metrics from those ranks, by their definitions."""
    best = [ranks[0] for ranks in found]
    ideal = [sum(1 / np.log2(1 + r) for r in range(1, len(ranks) + 1)) for ranks in found]
    five = [[(n + 1) / rank for n, rank in enumerate(ranks) if rank <= 5] for ranks in found]
    return {
        **{f"r{k}": 100 * np.mean([rank <= k for rank in best]) for k in (1, 5, 10)},
        "median_rank": np.median(best),
        "mean_rank": np.mean(best),
        "map5": np.mean([np.mean(hits) if hits else 0 for hits in five]),
        "map_cut5": np.mean([sum(hits) / len(ranks) for hits, ranks in zip(five, found, strict=True)]),
        "mrr": np.mean([1 / rank for rank in best]),
        "ndcg": np.mean(
            [sum(1 / np.log2(1 + r) for r in ranks) / most for ranks, most in zip(found, ideal, strict=True)]
        ),
        "r_precision": np.mean([sum(rank <= len(ranks) for rank in ranks) / len(ranks) for ranks in found]),
        "map_r": np.mean(
            [sum((n + 1) / r for n, r in enumerate(ranks) if r <= len(ranks)) / len(ranks) for ranks in found]
        ),
    }


def written_out(scene, k, second=None):
    first = scene.images.astype(np.float64) @ scene.captions.astype(np.float64).T
    second = scene.table if second is None else second
    found = {}
    for direction, turn in (("i2t", lambda x: x), ("t2i", lambda x: x.T)):
        right = turn(scene.right)
        values = metrics(places(right, turn(first), turn(second), min(k, right.shape[1])))
        values["average_recall"] = np.mean([values[f"r{at}"] for at in (1, 5, 10)])
        found |= {f"{direction}/{name}": value for name, value in values.items()}
    found["rsum"] = 3 * (found["i2t/average_recall"] + found["t2i/average_recall"])
    return found


@pytest.mark.parametrize("form", ["pairs", "tiles"])
@pytest.mark.parametrize("k", [1, 7, 29, 200])
def test_every_metric_is_that_of_the_list_sorted_twice(scene, k, form):
    found = scene.rerank(getattr(scene, form), k=k, form=form, batch=50)
    expected = written_out(scene, k)
    # The ceiling: a scorer that knows the answers.
    ceiling = written_out(scene, k, scene.right * 1.0 - 1e-3 * np.arange(CAPTIONS))
    bounded = {f"ceiling/{name}": value for name, value in ceiling.items() if not name.endswith("_rank")}
    assert found.metrics == pytest.approx(expected | bounded, abs=1e-9)
    assert found.ties["pessimistic"] == pytest.approx(expected, abs=1e-9)  # nothing is tied
    assert found.k == k
    assert all(queries * items <= 50 if form == "tiles" else queries <= 50 for queries, items in scene.calls)


@pytest.mark.parametrize("form", ["pairs", "tiles"])
@pytest.mark.parametrize("batch", [1, 30, 49, 100_000])
def test_every_pair_scored(scene, form, batch):
    found = scene.rerank(getattr(scene, form), k=None, form=form, batch=batch)
    assert found.metrics == pytest.approx(written_out(scene, CAPTIONS), abs=1e-9)
    assert not any(name.startswith("ceiling") for name in found.metrics)
    assert found.k is None
    side = int(batch**0.5)
    assert max(len(np.atleast_1d(queries)) for queries, _ in scene.calls) <= max(batch, 1)
    if form == "tiles":
        assert all(queries <= side and items <= side for queries, items in scene.calls)
    # Against vectors whose products are the table: the same counts, not only the same means.
    exact = evaluate(np.eye(IMAGES), scene.table.T, scene.image_ids, scene.caption_ids)
    for direction in ("i2t", "t2i"):
        for part in ("score", "greater", "equal", "equal_positives"):
            assert (getattr(found.counts[direction], part) == getattr(exact.counts[direction], part)).all()
    assert found.ties == exact.ties


def test_the_matrix_is_never_held():
    """1,200 x 1,200 scores are 5.8 MB; what numpy holds while they are counted is a fraction of that."""
    pairs = Positives.from_ids(np.arange(1200), np.arange(1200))

    def score(queries, items):
        return np.cos(np.float32(3) * queries[:, None] + np.float32(5) * items)

    tracemalloc.start()
    try:
        score_all(score, pairs, form="tiles")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5e6


def test_a_scorer_that_never_says_the_same_twice(scene):
    """A positive is level with itself all the same: tiles that are scored twice keep what was said first."""
    noise = np.random.default_rng(3)
    found = scene.rerank(lambda q, g: scene.table[q, g] + noise.normal(0, 1e-3, len(q)), k=None, batch=100)
    assert all((counts.equal == 1).all() for counts in found.counts.values())
    assert found.metrics["rsum"] == pytest.approx(written_out(scene, CAPTIONS)["rsum"], abs=10)


def test_scorers_without_pooled_vectors(scene):
    pairs = Positives.from_ids(scene.image_ids, scene.caption_ids)
    named = score_all(scene.pairs, pairs, query_name="v", ks=(1, 3))
    assert named.directions == ("v2t", "t2v")
    assert "rsum" not in named.metrics
    assert named.metrics["v2t/r1"] == pytest.approx(written_out(scene, CAPTIONS)["i2t/r1"])
    one_way = score_all(scene.pairs, Positives.from_lists([[0], [1, 5]], 90), both_directions=False)
    assert one_way.directions == ("i2t",)
    with pytest.raises(UserError, match="87 of 90 t2i queries have no positive"):
        score_all(scene.pairs, Positives.from_lists([[0], [1, 5]], 90))


def test_a_pair_in_both_shortlists_is_scored_once(scene):
    found = scene.rerank(k=200)
    assert found.pairs == IMAGES * CAPTIONS == sum(queries for queries, _ in scene.calls)
    few = scene.rerank(k=5)
    assert 5 * CAPTIONS <= few.pairs < 5 * (IMAGES + CAPTIONS)


def test_misses_keep_the_order_of_the_first_stage(scene):
    """The worst scorer there is: what it never saw stays where it was, and what it saw goes last among the k."""
    found = scene.rerank(lambda q, g: -scene.right[q, g].astype(float) - 1e-3 * g, k=10)
    for direction in ("i2t", "t2i"):
        before, after, reached = scene.first.counts[direction], found.counts[direction], found.reached[direction]
        assert reached.any()
        assert not reached.all()
        assert (after.greater[~reached] == before.greater[~reached]).all()
        assert np.allclose(after.score[~reached], before.score[~reached], rtol=1e-5)
        assert (before.greater[reached] < 10).all()
        assert (after.greater[reached] < 10).all()
        assert (after.greater[reached] >= 10 - 3).all()
        missed = ~np.logical_or.reduceat(reached, found.positives[direction].offsets[:-1])
        assert found.metrics[f"ceiling/{direction}/r1"] == pytest.approx(100 * (1 - missed.mean()))
        assert found.ranks[direction].score.dtype == np.float32


def test_ties_of_the_scorer_are_shared_out(scene):
    """All equal: a positive is first with the chance that it holds among the k."""
    found = scene.rerank(lambda q, g: np.zeros(len(q)), k=10)
    for direction, right in (("i2t", scene.right), ("t2i", scene.right.T)):
        reached, sets = found.reached[direction], found.positives[direction]
        inside = np.add.reduceat(reached.astype(float), sets.offsets[:-1])
        assert right.sum() == len(reached)
        assert found.metrics[f"{direction}/r1"] == pytest.approx(100 * np.mean(inside / 10))
        assert found.ties["pessimistic"][f"{direction}/r1"] == 0
        assert found.tied_queries[direction] >= (inside > 0).sum()


@pytest.mark.parametrize("k", [6, 40, None])
def test_ties_both_ways_are_those_of_the_list_with_positives_first_or_last(scene, k):
    """Three values for all scores: every query is tied, mostly with its own positives too."""
    scene.table = np.round(scene.table).clip(-1, 1)
    found = scene.rerank(k=k)
    assert min(found.tied_queries.values()) > 5
    for treatment, sign in (("optimistic", 1), ("pessimistic", -1)):
        expected = written_out(scene, k or CAPTIONS, scene.table + sign * 1e-3 * scene.right)
        for name, value in expected.items():
            if not name.endswith("map5"):  # positives first need not be best for it
                assert found.ties[treatment][name] == pytest.approx(value, abs=1e-9), name
    low, middle, high = (found.ties[how]["rsum"] for how in ("pessimistic", "expected", "optimistic"))
    assert low < middle < high


def test_ties_of_the_first_stage_stay_behind_the_shortlist():
    """Collapsed vectors: each shortlist is arbitrary, and everything behind it is level."""
    rows = np.ones((20, 4), np.float32)
    first = evaluate(rows, rows, list(range(20)), list(range(20)))
    found = rerank(lambda q, g: (q == g).astype(float), rows, rows, first, k=5)
    counts, reached = found.counts["i2t"], found.reached["i2t"]
    assert reached.sum() == 5  # the same five for everyone
    assert (counts.greater[reached] == 0).all()
    assert (counts.equal[reached] == 1).all()
    assert (counts.greater[~reached] == 5).all()
    assert (counts.equal[~reached] == 15).all()
    assert found.metrics["i2t/r1"] == found.metrics["ceiling/i2t/r1"] == 25
    # Fifteen are level on the places 6 to 20: five of these are among the first ten.
    assert found.metrics["i2t/r10"] == pytest.approx(100 * (5 + 15 * 5 / 15) / 20)


def test_small_strips_and_blocks_change_nothing(scene, monkeypatch):
    whole = scene.rerank(k=7)
    monkeypatch.setattr(shortlisted, "STRIP", 200)  # two queries together
    monkeypatch.setattr(inputs, "BLOCK", 12 * 11)
    cut = scene.rerank(k=7)
    assert cut.metrics == whole.metrics


def test_half_precision_files_are_read_where_they_lie(scene, tmp_path):
    for name in ("images", "captions"):
        np.save(tmp_path / f"{name}.npy", getattr(scene, name).astype(np.float16))
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("images", "captions")]
    first = evaluate(*maps, scene.image_ids, scene.caption_ids)
    plain = [np.asarray(each, np.float32) for each in maps]
    assert rerank(scene.pairs, *maps, first, k=9).metrics == rerank(scene.pairs, *plain, first, k=9).metrics


def test_one_line(scene):
    line = str(scene.rerank(k=7))
    found = scene.rerank(k=7)
    for value in (found.metrics["rsum"], scene.first.metrics["rsum"], found.metrics["ceiling/rsum"]):
        assert f"{value:.2f}" in line
    assert line.startswith("the first 7 of each query re-ranked: rsum ")
    assert line.endswith(f"{found.pairs:,} pairs scored")
    assert str(scene.rerank(k=None)).startswith("every pair scored: rsum ")


def test_progress_counts_pairs(scene):
    told = []
    found = scene.rerank(k=7, batch=64, progress=lambda done, total: told.append((done, total)))
    assert told[0][0] == 64
    assert told[-1] == (found.pairs, found.pairs)
    told.clear()
    found = scene.rerank(k=None, batch=64, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (found.pairs, found.pairs)


def spoiled(scene, query, item, value):
    table = scene.table.copy()
    table[query, item] = value
    return table


@pytest.mark.parametrize("k", [90, None])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_named(scene, k, value):
    table = spoiled(scene, 4, 71, value)
    with pytest.raises(UserError, match=r"NaN or infinite scores for query row 4 with gallery row 71$"):
        scene.rerank(lambda q, g: table[q, g], k=k)
    with pytest.raises(UserError, match=r"NaN or infinite scores for query row 4 with gallery row 71$"):
        scene.rerank(lambda q, g: table[np.ix_(q, g)], k=k, form="tiles")


def test_many_scores_that_are_not_finite(scene):
    with pytest.raises(UserError, match=r"query row 0 with gallery row 0, query row 0 .* and 2695 more pairs"):
        scene.rerank(lambda q, g: np.full(len(q), np.nan), k=90)


@pytest.mark.parametrize(
    ("form", "answer", "said"),
    [
        ("pairs", lambda q, g: np.zeros(len(q) + 1), r"shape \[41\] for 40 query rows \(0, 0, 0, 0, 0, …\)"),
        ("pairs", lambda q, g: np.zeros((len(q), 1)), r"shape \[40, 1\].*accepted in the form 'pairs': \[40\]"),
        ("pairs", lambda q, g: 0.5, r"shape \[\] for 40 query rows"),
        ("tiles", lambda q, g: torch.zeros(len(g), len(q)), r"\[40, 1\] for 1 query rows \(0\).*'tiles': \[1, 40\]"),
        ("pairs", lambda q, g: None, "returned NoneType for 40 query rows"),
        ("tiles", lambda q, g: [[1.0, 2.0], [3.0]], "returned list for 1 query rows"),
        ("pairs", lambda q, g: ["high"] * len(q), r"returned list for 40 query rows .*accepted: an array or tensor"),
    ],
)  # fmt: skip
def test_wrong_answers_name_the_rows(scene, form, answer, said):
    with pytest.raises(UserError, match=said):
        scene.rerank(answer, k=90, form=form, batch=40)


def test_wrong_arguments(scene):
    with pytest.raises(UserError, match="k=0; accepted"):
        scene.rerank(k=0)
    with pytest.raises(UserError, match="unknown form 'tile' of a scorer; did you mean 'tiles'"):
        scene.rerank(form="tile")
    with pytest.raises(UserError, match="batch=0; accepted"):
        scene.rerank(batch=0)
    with pytest.raises(UserError, match="workers=0; accepted"):
        over_actors(0)
    with pytest.raises(UserError, match="29 queries and a gallery of 90, but the report is of 30 and 90"):
        rerank(scene.pairs, scene.images[1:], scene.captions, scene.first)
    for k in (9, None):
        with pytest.raises(UserError, match=r"map gave results for 32 of \d+ pairs"):
            scene.rerank(k=k, map=lambda work, jobs: islice(map(work, jobs), 2), batch=16)
    with pytest.raises(UserError, match="map gave more results"):
        scene.rerank(map=lambda work, jobs: [work(job) for job in list(jobs)] * 2, batch=16)


def test_an_executor_is_a_map(scene):
    plain = scene.rerank(k=11, batch=16)
    with ThreadPoolExecutor(3) as pool:
        assert scene.rerank(k=11, batch=16, map=pool.map).metrics == plain.metrics


@pytest.fixture(scope="module")
def three_cpus():
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def cross_attention(scene):
    """A scorer with weights: attention of a query's four parts over an item's three, then the mean cosine."""
    rng = torch.Generator().manual_seed(1)
    images, captions = torch.from_numpy(scene.images).view(-1, 4, 3), torch.from_numpy(scene.captions).view(-1, 4, 3)
    weights = torch.randn(3, 3, generator=rng)

    def score(queries, items):
        parts, words = images[queries] @ weights, captions[items]
        context = torch.softmax(9 * parts @ words.mT, dim=-1) @ words
        return torch.cosine_similarity(parts, context, dim=-1).mean(1)

    return score


@pytest.mark.usefixtures("three_cpus")
@pytest.mark.parametrize(("k", "crews"), [(9, (1, 2, 3)), (None, (2,))])
def test_any_number_of_workers_gives_the_same_bits(scene, k, crews):
    score = cross_attention(scene)
    here = scene.rerank(score, k=k, batch=37)
    for workers in crews:
        there = scene.rerank(score, k=k, batch=37, map=over_actors(workers))
        assert there.metrics == here.metrics
        assert there.ties == here.ties
        for direction in ("i2t", "t2i"):
            for part in ("score", "greater", "equal", "equal_positives"):
                a, b = (getattr(found.counts[direction], part) for found in (here, there))
                assert a.tobytes() == b.tobytes()


@pytest.mark.usefixtures("three_cpus")
def test_actors_work_apart_and_end(scene):
    table = scene.table

    driver = os.getpid()

    def score(queries, items):
        assert os.getpid() != driver
        return table[queries, items]

    assert scene.rerank(score, k=9, map=over_actors(2), batch=32).metrics == scene.rerank(k=9).metrics
    assert ray.is_initialized()  # it is the caller's
    with pytest.raises(UserError, match="workers=4: this Ray cluster has 3 CPUs"):
        scene.rerank(score, map=over_actors(4))


@pytest.mark.usefixtures("three_cpus")
def test_a_wrong_answer_of_an_actor_is_one_line(scene):
    table = spoiled(scene, 4, 71, np.nan)
    with pytest.raises(UserError, match=r"^the scorer returned NaN or infinite scores for query row 4 with"):
        scene.rerank(lambda q, g: table[q, g], k=90, map=over_actors(1), batch=100)
    with pytest.raises(UserError, match=r"^the scorer returned list for 100 query rows"):
        scene.rerank(lambda q, g: ["high"] * len(q), k=90, map=over_actors(1), batch=100)

    def failing(queries, items):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        scene.rerank(failing, k=90, map=over_actors(1))
