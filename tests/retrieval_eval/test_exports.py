"""Exports: read back by pyarrow and pytrec_eval, and a paper's row written out."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval

from allpairs.embeddings import EmbeddingSet
from retrieval_eval.exports import latex, markdown, write_exports
from retrieval_eval.measure import measure
from retrieval_eval.protocols import PROTOCOLS, Protocol
from retrieval_eval.subset import Subset

CUSTOM = PROTOCOLS["custom"]
NOTES = [
    "mAP@5: sum of the precisions at the hits in the top 5, over the hits found there (COCOS)",
    "mAP@5 (trec): sum of the precisions at the hits in the top 5, over all the query's right answers (trec_eval)",
]


def embeddings(images=30, captions=3):
    rng = np.random.default_rng(1)
    rows = rng.permutation(np.repeat(np.arange(images), captions))
    X, ids = rng.normal(size=(images, 6)), 500 - np.arange(images)
    texts = [f"a caption\twith | number\n{row}" for row in range(len(rows))]
    return EmbeddingSet(
        X, X[rows] + 1.5 * rng.normal(size=(len(rows), 6)), ids, ids[rows], [f"{i}.jpg" for i in ids], texts
    )


def read_trec(folder, direction):
    with (folder / f"run_{direction}.trec").open() as run, (folder / f"qrels_{direction}.trec").open() as qrels:
        return pytrec_eval.parse_run(run), pytrec_eval.parse_qrel(qrels)


def test_trec_files_give_the_same_metrics(tmp_path):
    found = measure(embeddings(), CUSTOM)
    files = write_exports(tmp_path / "new" / "folder", "my run", found.report, found.folds)
    assert all(file.stat().st_size for file in files)
    assert len(files) == 8
    measures = {"recip_rank", "success_1", "success_5", "success_10", "ndcg", "Rprec", "map_cut_5"}
    for direction in found.report.directions:
        run, qrels = read_trec(tmp_path / "new" / "folder", direction)
        scored = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
        values = found.report.per_query[direction]
        side = found.folds[0].asking[direction]
        assert list(scored) == [side.name(row) for row in range(len(side))]
        ours = {"recip_rank": "mrr", "ndcg": "ndcg", "Rprec": "r_precision", "map_cut_5": "map_cut5"} | {
            f"success_{k}": f"r{k}" for k in (1, 5, 10)
        }
        for theirs, name in ours.items():
            scale = 100 if name in ("r1", "r5", "r10") else 1
            expected = [scale * query[theirs] for query in scored.values()]
            assert values[name] == pytest.approx(expected, abs=1e-6)
    lines = (tmp_path / "new" / "folder" / "run_i2t.trec").read_text().splitlines()
    assert [part for place, part in enumerate(lines[0].split(" ")) if place in (0, 1, 3, 5)] == [
        "i500",
        "Q0",
        "1",
        "my_run",
    ]


def test_the_table_of_queries(tmp_path):
    given = embeddings()
    found = measure(given, CUSTOM)
    write_exports(tmp_path, "run", found.report, found.folds)
    scores = given.images @ given.captions.T
    for direction, S in (("i2t", scores), ("t2i", scores.T)):
        table = pq.read_table(tmp_path / f"queries_{direction}.parquet").to_pylist()
        assert len(table) == len(S)
        names = {"i2t": [f"t{row}" for row in range(90)], "t2i": [f"i{i}" for i in given.image_ids]}[direction]
        for row, (line, own) in enumerate(zip(table, S, strict=True)):
            ids = given.image_ids if direction == "i2t" else given.caption_ids
            right = np.flatnonzero((given.caption_ids if direction == "i2t" else given.image_ids) == ids[row])
            assert line["direction"] == direction
            assert line["query"] == (f"i{ids[row]}" if direction == "i2t" else f"t{row}")
            assert line["image_id"] == ids[row]
            assert line["text"] == (given.image_keys if direction == "i2t" else given.texts)[row]
            assert line["positives"] == [names[item] for item in right]
            assert line["positive_scores"] == pytest.approx(own[right], rel=1e-5)
            ranks = [1 + int((own > own[item]).sum()) for item in right]
            assert line["positive_ranks"] == ranks
            assert line["positive_greater"] == [rank - 1 for rank in ranks]
            assert line["positive_equal"] == [1] * len(ranks)
            assert line["rank"] == min(ranks)
            assert line["r5"] == 100.0 * (min(ranks) <= 5)
            best = np.argsort(-own)[:10]
            assert line["top"] == [names[item] for item in best]
            assert line["top_scores"] == pytest.approx(own[best], rel=1e-5)


def test_definitions_stand_beside_the_numbers(tmp_path):
    found = measure(embeddings(), CUSTOM)
    write_exports(tmp_path, "run", found.report, found.folds)
    for note in NOTES:
        assert f"\n{note}.\n" in (tmp_path / "rows.md").read_text()
        assert f"% {note}\n" in (tmp_path / "rows.tex").read_text()
    schema = pq.read_schema(tmp_path / "queries_i2t.parquet")
    told = {name: (schema.field(name).metadata or {}).get(b"definition", b"").decode() for name in schema.names}
    assert [note.split(": ")[1] for note in NOTES] == [told["map5"], told["map_cut5"]]
    assert told["rank"] == told["r1"] == ""


def test_tied_positives_have_the_mean_place_of_their_tie(tmp_path):
    given = replace(embeddings(), images=np.ones((30, 6)), captions=np.ones((90, 6)))
    found = measure(given, CUSTOM)
    write_exports(tmp_path, "run", found.report, found.folds)
    line = pq.read_table(tmp_path / "queries_i2t.parquet").to_pylist()[0]
    assert (line["positive_greater"], line["positive_equal"]) == ([0] * 3, [90] * 3)
    assert line["positive_ranks"] == [45.5] * 3
    assert line["rank"] == pytest.approx(91 / 4)  # the first of three among ninety


def test_folds_and_subsets_keep_the_names(tmp_path):
    given = embeddings()
    halves = measure(given, Protocol("halves", "two blocks", folds=2))
    write_exports(tmp_path / "halves", "run", halves.report, halves.folds)
    run, qrels = read_trec(tmp_path / "halves", "t2i")
    assert len(run) == 90
    first = {f"i{i}" for i in given.image_ids[:15]}
    for query, items in run.items():
        own = given.caption_ids[int(query[1:])]
        assert set(qrels[query]) == {f"i{own}"}
        assert set(items) <= first if f"i{own}" in first else not set(items) & first
    captions = np.array([3, 80])
    owners = np.flatnonzero(np.isin(given.image_ids, given.caption_ids[captions]))
    some = measure(given, CUSTOM, Subset(captions, {"file": "none"}))
    write_exports(tmp_path / "some", "run", some.report, some.folds)
    run, qrels = read_trec(tmp_path / "some", "t2i")
    assert set(run) == set(qrels) == {"t3", "t80"}
    assert len(run["t3"]) == 30
    assert len(pq.read_table(tmp_path / "some" / "queries_i2t.parquet")) == len(owners)


def test_rows_in_the_columns_of_the_papers():
    names = ["r1", "r5", "r10", "average_recall", "map5", "map_cut5"]
    values = {f"i2t/{name}": value for name, value in zip(names, (42.44, 71.2, 80.7, 64.8, 0.5, 0.3), strict=True)}
    values |= {f"t2i/{name}": value for name, value in zip(names, (30.0, 59.0, 70.4, 53.1, 0.4, 0.4), strict=True)}
    report = replace(measure(embeddings(), CUSTOM).report, metrics=values | {"rsum": 353.8})
    assert markdown("VSE | ++", report).splitlines() == [
        "| model | i2t R@1 | i2t R@5 | i2t R@10 | i2t avg recall | i2t mAP@5 | i2t mAP@5 (trec)"
        " | t2i R@1 | t2i R@5 | t2i R@10 | t2i avg recall | RSUM |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| VSE \\| ++ | 42.4 | 71.2 | 80.7 | 64.8 | 0.500 | 0.300 | 30.0 | 59.0 | 70.4 | 53.1 | 353.8 |",
    ]
    widths = {name: (value - 1.5, value + 0.5) for name, value in report.metrics.items()}
    comment, *defined, row = latex("a_b & 100%\\", report, widths).splitlines()
    assert comment.startswith("% model & i2t R@1 & ")
    assert defined == [f"% {note}" for note in NOTES]
    assert row == (
        r"a\_b \& 100\%\textbackslash{} & $42.4 {\pm} 1.0$ & $71.2 {\pm} 1.0$ & $80.7 {\pm} 1.0$ & $64.8 {\pm} 1.0$"
        r" & $0.500 {\pm} 1.000$ & $0.300 {\pm} 1.000$"
        r" & $30.0 {\pm} 1.0$ & $59.0 {\pm} 1.0$ & $70.4 {\pm} 1.0$ & $53.1 {\pm} 1.0$"
        r" & $353.8 {\pm} 1.0$ \\"
    )
