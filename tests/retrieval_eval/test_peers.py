"""Agreement with torchmetrics where the definitions coincide, and with FAISS."""

import importlib
import logging
import sys

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import (
    RetrievalHitRate,
    RetrievalMAP,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalRPrecision,
)

from retrieval_eval import evaluate
from retrieval_eval.cross_check import cross_check
from retrieval_eval.indexes.probe import backend
from retrieval_eval.shortlist import shortlist


@pytest.fixture(scope="module")
def embeddings():
    rng = torch.Generator().manual_seed(11)
    ids = torch.arange(60).repeat_interleave(3)[torch.randperm(180, generator=rng)]
    images = torch.nn.functional.normalize(torch.randn(60, 16, generator=rng))
    captions = torch.nn.functional.normalize(images[ids] + 0.4 * torch.randn(180, 16, generator=rng))
    return images, captions, torch.arange(60), ids


def test_torchmetrics_agrees(embeddings):
    images, captions, image_ids, caption_ids = embeddings
    report = evaluate(*embeddings)
    scores = images @ captions.T
    right = image_ids[:, None] == caption_ids
    for direction, S, target in (("i2t", scores, right), ("t2i", scores.T, right.T)):
        query = torch.arange(len(S))[:, None].expand_as(S)

        def measured(metric, S=S, target=target, query=query):
            # torchmetrics takes scores of 0 and below for "not retrieved": lift them.
            return float(metric(2 + S.flatten(), target.flatten(), indexes=query.flatten()))

        for k in (1, 5, 10):
            assert report.metrics[f"{direction}/r{k}"] == pytest.approx(
                100 * measured(RetrievalHitRate(top_k=k)), abs=1e-4
            )
        assert report.metrics[f"{direction}/map5"] == pytest.approx(measured(RetrievalMAP(top_k=5)), abs=1e-6)
        for name, metric in (
            ("mrr", RetrievalMRR()),
            ("ndcg", RetrievalNormalizedDCG()),
            ("r_precision", RetrievalRPrecision()),
        ):
            assert report.metrics[f"{direction}/{name}"] == pytest.approx(measured(metric), abs=1e-6)


def test_shortlists_are_the_largest_products(embeddings):
    images, captions, _, _ = embeddings
    found = shortlist(images, captions, 7)
    scores = images.double().numpy() @ captions.double().numpy().T
    assert found.backend.startswith("faiss")
    assert (found.indices == np.argsort(-scores, axis=1)[:, :7]).all()
    assert np.allclose(found.scores, -np.sort(-scores, axis=1)[:, :7], rtol=0, atol=1e-6)
    assert shortlist(images, captions, 1000).indices.shape == (60, 180)


def test_faiss_agrees_with_the_counted_recalls(embeddings):
    images, captions, _, _ = embeddings
    check = cross_check(evaluate(*embeddings), images, captions)
    assert set(check.agreement) == {f"{direction}/r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)}
    assert set(check.agreement.values()) == {100.0}
    assert "agrees with every" in str(check)


def test_cross_check_forgives_ties_and_reports_what_is_wrong(embeddings):
    images, captions, image_ids, caption_ids = embeddings
    collapsed = torch.ones_like(images), torch.ones_like(captions)
    assert set(cross_check(evaluate(*collapsed, image_ids, caption_ids), *collapsed).agreement.values()) == {100.0}
    # A report of other embeddings: the check must not agree.
    wrong = cross_check(evaluate(images.roll(1, 0), captions, image_ids, caption_ids), images, captions)
    assert wrong.agreement["i2t/r1"] < 50
    assert len(wrong.differences["i2t/r1"]) > 30
    assert "unexplained" in str(wrong)


def test_without_faiss_torch_makes_the_shortlists(embeddings, monkeypatch, caplog):
    images, captions, _, _ = embeddings
    by_faiss = shortlist(images, captions, 5)
    monkeypatch.setitem(sys.modules, "faiss", None)  # what an environment without it does: import faiss fails
    with pytest.raises(ImportError):
        importlib.import_module("faiss")
    backend.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            by_torch = shortlist(images, captions, 5)
    finally:
        backend.cache_clear()
    assert by_torch.backend == "torch"
    assert (by_torch.indices == by_faiss.indices).all()
    assert len(caplog.records) == 1
    assert "faiss-cpu or faiss-gpu" in caplog.text
