"""Ranking by the inner product or by cosine similarity: alike on every path, and said where it makes a difference."""

import importlib
import json

import numpy as np
import pytest
import torch

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from retrieval_eval import evaluate
from retrieval_eval.approximate import measure_gap
from retrieval_eval.cross_check import cross_check
from retrieval_eval.exports import write_exports
from retrieval_eval.inputs import normalised
from retrieval_eval.measure import measure
from retrieval_eval.norms import Norms
from retrieval_eval.page.query_results import query_results
from retrieval_eval.protocols import Protocol
from retrieval_eval.rerank import rerank
from retrieval_eval.shortlist import shortlist
from retrieval_eval.tiles import Blocks

IMAGES = 80
IMAGE_IDS = np.arange(IMAGES)
CAPTION_IDS = np.repeat(IMAGE_IDS, 2)


def directions(seed):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(IMAGES, 24))
    return images, images[CAPTION_IDS] + 1.5 * rng.normal(size=(2 * IMAGES, 24))


def stretched(matrix, seed=1):
    """The same directions, in lengths of all sizes."""
    return (matrix * np.exp(np.random.default_rng(seed).normal(size=(len(matrix), 1)))).astype(np.float32)


@pytest.fixture(scope="module")
def raw():
    images, captions = directions(0)
    return stretched(images), stretched(captions, 2)


def embeddings(images, captions):
    keys, texts = [f"image {i}" for i in range(IMAGES)], [f"caption {i}" for i in range(2 * IMAGES)]
    return EmbeddingSet(images, captions, IMAGE_IDS, CAPTION_IDS, keys, texts)


def cosines(images, captions):
    """The score matrix, in float64 by numpy alone."""
    a, b = (side.astype(np.float64) for side in (images, captions))
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def recall(scores, k, right=None):
    right = IMAGE_IDS[:, None] == CAPTION_IDS if right is None else right
    best = np.where(right, scores, -np.inf).max(1)
    return 100 * (1 + (scores > best[:, None]).sum(1) <= k).mean()


def expected(images, captions):
    S = cosines(images, captions)
    right = IMAGE_IDS[:, None] == CAPTION_IDS
    return {f"i2t/r{k}": recall(S, k) for k in (1, 5, 10)} | {f"t2i/r{k}": recall(S.T, k, right.T) for k in (1, 5, 10)}


def agrees(metrics, wanted):
    return all(metrics[name] == pytest.approx(value, abs=1e-9) for name, value in wanted.items())


def test_cosine_ranks_by_directions_alone(raw):
    plain, cosine = (evaluate(*raw, IMAGE_IDS, CAPTION_IDS, cosine=each) for each in (False, True))
    assert (plain.cosine, cosine.cosine) == (False, True)
    assert agrees(cosine.metrics, expected(*raw))
    assert plain.metrics["rsum"] < cosine.metrics["rsum"] - 50


@pytest.mark.parametrize("exponent", [-30, -17, 18, 30])
def test_rows_of_any_length(raw, exponent):
    """Squares of these do not fit float32: a length taken there would be 0 or infinite."""
    rng = np.random.default_rng(3)
    extreme = [
        (side * 10.0 ** (exponent * rng.integers(0, 2, (len(side), 1)))).astype(np.float32) for side in raw
    ]  # fmt: skip
    assert agrees(evaluate(*extreme, IMAGE_IDS, CAPTION_IDS, cosine=True).metrics, expected(*raw))


def test_unit_rows_are_unit_and_zero_rows_zero():
    rows = torch.tensor([[3.0, 4.0], [3e38, 3e38], [1e-45, 0.0], [0.0, 0.0], [-0.0, -2.0]])
    unit = normalised(rows)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(unit, [[0.6, 0.8], [root, root], [1, 0], [0, 0], [0, -1]], rtol=1e-7)
    zero = np.zeros((1, 2), np.float32)
    report = evaluate(np.vstack([rows[:1], zero]), np.vstack([zero, rows[:1]]), [0, 1], [1, 0], cosine=True)
    assert report.tied_queries == {"i2t": 1, "t2i": 1}  # all scores of a zero row are 0


def test_columns_kept_on_a_device_are_normalised_once(raw):
    """What a GPU does with a gallery; rows that were normalised twice could differ in their last bits."""
    order = np.random.default_rng(0).permutation(IMAGES)
    blocks = Blocks(torch.from_numpy(raw[0]), order, 16, torch.device("cpu"), cosine=True)
    moved = blocks.moved_to(torch.device("cpu"))
    assert not moved.cosine
    unit = normalised(torch.from_numpy(raw[0]))[torch.from_numpy(order)]
    for start in range(0, IMAGES, 16):
        assert torch.equal(blocks.at(start), unit[start : start + 16])
        assert torch.equal(moved.at(start), unit[start : start + 16])


def test_tensors_of_any_type_are_normalised_after_they_are_float32(raw):
    half = [torch.from_numpy(side).to(torch.bfloat16) for side in raw]
    report = evaluate(*half, IMAGE_IDS, CAPTION_IDS, cosine=True)
    assert agrees(report.metrics, expected(*(side.float().numpy() for side in half)))


def test_kept_work_is_of_one_similarity(raw, tmp_path):
    arguments = {"state": tmp_path / "state"}
    found = evaluate(*raw, IMAGE_IDS, CAPTION_IDS, cosine=True, **arguments)
    with pytest.raises(UserError, match=r"another evaluation \(cosine differ\)"):
        evaluate(*raw, IMAGE_IDS, CAPTION_IDS, **arguments)
    assert evaluate(*raw, IMAGE_IDS, CAPTION_IDS, cosine=True, **arguments).metrics == found.metrics


def test_searches_rank_as_the_report_they_are_given(raw, tmp_path):
    report = evaluate(*raw, IMAGE_IDS, CAPTION_IDS, cosine=True)
    assert min(cross_check(report, *raw).agreement.values()) == 100
    S = cosines(*raw)
    found = shortlist(*raw, 5, cosine=True)
    np.testing.assert_array_equal(found.indices, np.argsort(-S, axis=1)[:, :5])
    gap = measure_gap(*raw, report, "hnsw")
    assert all(each.found > 95 for each in gap.recalls.values())
    shown = query_results(embeddings(*raw), report)["t2i"]
    np.testing.assert_allclose(shown.scores_QK[:, 0], S.max(0), rtol=1e-6)
    np.testing.assert_allclose(shown.hardest_Q, np.where(IMAGE_IDS[:, None] == CAPTION_IDS, -2, S).max(0), rtol=1e-6)


def test_a_scorer_gets_the_shortlist_of_the_report(raw):
    """A scorer that knows nothing leaves the items of the shortlist level, and those behind it as they were."""
    first = evaluate(*raw, IMAGE_IDS, CAPTION_IDS, cosine=True)
    found = rerank(lambda queries, items: np.zeros(len(queries)), *raw, first, k=10)
    assert found.cosine
    wanted = expected(*raw)
    assert found.ties["optimistic"]["i2t/r10"] == pytest.approx(wanted["i2t/r10"])
    assert found.metrics["ceiling/t2i/r10"] == pytest.approx(wanted["t2i/r10"])


def test_folds_subsets_and_exports(raw, tmp_path):
    protocol = Protocol("blocks", "any", folds=2)
    measured = measure(embeddings(*raw), protocol, cosine=True)
    halves = []
    for rows in (slice(0, IMAGES // 2), slice(IMAGES // 2, IMAGES)):
        right = IMAGE_IDS[rows, None] == CAPTION_IDS
        halves.append(recall(cosines(*raw)[rows][:, right.any(0)], 1, right[:, right.any(0)]))
    assert measured.report.metrics["i2t/r1"] == pytest.approx(np.mean(halves))
    write_exports(tmp_path, "m", measured.report, measured.folds, note="how")
    scores = [float(line.split()[4]) for line in (tmp_path / "run_i2t.trec").read_text().splitlines()]
    assert max(scores) <= 1 + 1e-6
    assert "\nhow.\n" in (tmp_path / "rows.md").read_text()
    assert (tmp_path / "rows.tex").read_text().endswith("\n% how\n")


@pytest.mark.parametrize(
    ("lengths", "vary"),
    [
        (np.full(1000, 3.0), False),
        (np.linspace(1, 1.019, 1000), False),
        (np.linspace(1, 1.021, 1000), True),
        (np.r_[0.0, np.ones(999)], True),
    ],
)
def test_norms_vary_beyond_rounding(lengths, vary):
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(1000, 32))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    norms = Norms.of(unit * lengths[:, None])
    assert norms.vary == vary
    assert (norms.least, norms.median, norms.most) == pytest.approx(
        (lengths.min(), np.median(lengths), lengths.max()), rel=1e-6
    )


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 8, 512])
def test_unit_vectors_of_half_precision_do_not_vary(precision, width):
    vectors = torch.randn(2000, width, generator=torch.Generator().manual_seed(0)).to(precision)
    assert not Norms.of(torch.nn.functional.normalize(vectors)).vary


# --- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(in_process):
    return lambda module, *arguments: in_process(importlib.import_module(f"retrieval_eval.{module}").app)(*arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, raw):
    base = tmp_path_factory.mktemp("norms")
    np.save(base / "images.npy", raw[0])
    np.save(base / "captions.npy", raw[1])
    np.save(base / "unit.npy", normalised(torch.from_numpy(raw[0])).numpy())
    np.save(base / "unit_captions.npy", normalised(torch.from_numpy(raw[1])).numpy())
    lists = [np.flatnonzero(image == CAPTION_IDS).tolist() for image in IMAGE_IDS]
    (base / "positives.json").write_text(json.dumps(lists))
    other = directions(5)
    for name, sides in (("one", raw), ("two", (stretched(other[0]), stretched(other[1])))):
        embeddings(*sides).write(base / name / "embeddings" / "test")
    return base


def galleries(folder, queries="images.npy", gallery="captions.npy"):
    files = {"queries": queries, "gallery": gallery, "positives": "positives.json"}
    return [part for flag, file in files.items() for part in (f"--{flag}", folder / file)]


def test_norms_that_vary_are_named_wherever_the_numbers_go(command, folder, raw, tmp_path):
    code, out, err = command(
        "evaluate.__main__", *galleries(folder), "--out", tmp_path / "out", "--export", tmp_path / "x"
    )
    assert (code, err) == (0, "")
    sides = []
    for name, side in zip(("queries", "gallery"), raw, strict=True):
        norms = np.linalg.norm(side.astype(np.float64), axis=1)
        sides.append(f"{name} {norms.min():.4g} to {norms.max():.4g}, median {np.median(norms):.4g}")
    note = f"norms vary: {', '.join(sides)}; ranked by the inner product; --cosine normalises first"
    assert f"\n{note}\n" in out
    assert note in (tmp_path / "out" / "report.html").read_text()
    assert note in (tmp_path / "x" / "rows.md").read_text()
    assert note in (tmp_path / "x" / "rows.tex").read_text()
    manifest = json.loads((tmp_path / "out" / "metrics.json").read_text())["manifest"]
    assert manifest["similarity"] == "inner product"
    assert manifest["norms_vary"] is True
    norms = np.linalg.norm(raw[1].astype(np.float64), axis=1)
    assert manifest["norms"]["gallery"] == pytest.approx(
        {"min": norms.min(), "median": np.median(norms), "max": norms.max()}
    )


def test_cosine_is_what_normalised_files_give(command, folder, raw, tmp_path):
    code, out, err = command(
        "evaluate.__main__", *galleries(folder), "--cosine", "--out", tmp_path / "out", "--approximate", "hnsw"
    )
    assert (code, err) == (0, "")
    assert "ranked by cosine similarity: embeddings are normalised first (norms vary: queries" in out
    assert "agrees with every counted hit and miss" in out
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["manifest"]["similarity"] == "cosine"
    assert agrees(record["metrics"], expected(*raw))
    plain = command("evaluate.__main__", *galleries(folder, "unit.npy", "unit_captions.npy"), "--out", tmp_path / "u")
    assert "norms" not in plain[1]
    assert agrees(json.loads((tmp_path / "u" / "metrics.json").read_text())["metrics"], expected(*raw))


def test_in_one_direction_only_the_answers_lengths_count(command, folder):
    assert "norms" not in command("evaluate.__main__", *galleries(folder, gallery="unit_captions.npy"), "--one-way")[1]
    assert "norms vary" in command("evaluate.__main__", *galleries(folder, queries="unit.npy"), "--one-way")[1]
    assert "norms vary" in command("evaluate.__main__", *galleries(folder, gallery="unit_captions.npy"))[1]


def test_runs_an_ensemble_and_a_comparison(command, folder, raw, tmp_path):
    code, out, _ = command("evaluate.__main__", "--run", folder / "one", "--cosine", "--out", tmp_path / "one")
    assert code == 0
    assert agrees(json.loads((tmp_path / "one" / "metrics.json").read_text())["metrics"], expected(*raw))

    two = EmbeddingSet.read(folder / "two" / "embeddings" / "test")
    runs = ("--run", folder / "one", folder / "two")
    code, out, _ = command("evaluate.__main__", *runs, "--cosine", "--out", tmp_path / "both")
    assert code == 0
    assert "ranked by cosine similarity" in out
    mean = (cosines(*raw) + cosines(two.images, two.captions)) / 2
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())["metrics"]
    assert metrics["i2t/r1"] == pytest.approx(recall(mean, 1))
    assert "norms vary" in command("evaluate.__main__", *runs)[1]

    pair = (folder / "one", folder / "two")
    assert command("compare", *pair)[1].count("norms vary") == 2
    code, out, _ = command("compare", *pair, "--cosine", "--out", tmp_path / "c")
    assert code == 0
    assert out.count("ranked by cosine similarity") == 2
    changes = json.loads((tmp_path / "c" / "comparison.json").read_text())["metrics"]
    assert changes["i2t/r1"]["first"] == pytest.approx(expected(*raw)["i2t/r1"])
