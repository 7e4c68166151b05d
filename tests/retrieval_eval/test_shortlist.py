"""Shortlists in blocks, over memory maps and over parts; what is said when a GPU cannot be used."""

import logging
import re
import subprocess
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from allpairs.errors import UserError
from retrieval_eval import inputs
from retrieval_eval.indexes import build as building
from retrieval_eval.indexes import probe
from retrieval_eval.indexes.build import build, fill, search
from retrieval_eval.indexes.parameters import IndexParameters, plan
from retrieval_eval.indexes.probe import backend
from retrieval_eval.shortlist import shortlist


@pytest.fixture(scope="module")
def matrices():
    rng = np.random.default_rng(5)
    return tuple(rng.standard_normal((rows, 24)).astype(np.float32) for rows in (90, 257))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK", 24 * 20)


@pytest.fixture
def fresh_probe():
    backend.cache_clear()
    yield
    backend.cache_clear()


def best(queries, gallery, k):
    """The indices of the k largest float64 products: no two are near enough for float32 to swap them."""
    products = queries.astype(np.float64) @ gallery.astype(np.float64).T
    return np.argsort(-products, axis=1)[:, :k]


def test_blocks_change_nothing(matrices, small_blocks):
    assert (shortlist(*matrices, 9).indices == best(*matrices, 9)).all()
    # A gallery that is not laid out row after row goes through an index.
    columns = torch.from_numpy(np.asfortranarray(matrices[1]))
    assert not columns.is_contiguous()
    assert (shortlist(torch.from_numpy(matrices[0]), columns, 9).indices == best(*matrices, 9)).all()


def test_memory_maps_are_searched_in_place(matrices, small_blocks, tmp_path, monkeypatch):
    for name, matrix in zip("qg", matrices, strict=True):
        np.save(tmp_path / f"{name}.npy", matrix)
    largest = []
    knn = faiss.knn

    def watched(xq, xb, *rest):
        largest.append(len(xq))
        assert xb.ctypes.data == maps[1].ctypes.data  # the very pages of the file
        return knn(xq, xb, *rest)

    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "qg"]
    monkeypatch.setattr(faiss, "knn", watched)
    assert (shortlist(*maps, 4).indices == best(*matrices, 4)).all()
    assert largest == [20, 20, 20, 20, 10]


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_gallery_in_parts_keeps_its_ids(matrices, small_blocks, parts):
    # GPUs hold such parts; the class that joins them is the same, here over parts on the CPU.
    index = faiss.IndexShards(24, True, True)
    flat = [faiss.IndexFlatIP(24) for _ in range(parts)]
    for part in flat:
        index.add_shard(part)
    queries, gallery = map(torch.from_numpy, matrices)
    fill(index, gallery)
    assert index.ntotal == 257
    assert max(part.ntotal for part in flat) - min(part.ntotal for part in flat) <= 1
    scores, indices = search(index, queries, 11)
    assert (indices == best(*matrices, 11)).all()
    assert np.allclose(scores, np.take_along_axis(matrices[0] @ matrices[1].T, indices, 1), rtol=0, atol=1e-5)


def pretend_gpus(monkeypatch, cards):
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: cards)


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize(("cards", "named"), [(1, "this GPU"), (4, "these 4 GPUs together.*CUDA_VISIBLE_DEVICES")])
def test_a_gpu_that_aborts_the_probe_is_left_alone(matrices, monkeypatch, caplog, cards, named):
    pretend_gpus(monkeypatch, cards)
    monkeypatch.setattr(probe, "PROBE", "import os; os.abort()")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert shortlist(*matrices, 3).backend == "faiss-cpu"
    (record,) = caplog.records
    assert record.getMessage().endswith("(exit code -6): searching on the CPU")
    assert re.search(named, record.getMessage())


def test_a_probe_that_hangs_is_given_up(fresh_probe, monkeypatch, caplog):
    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(probe, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.2)
    assert backend() == "faiss-cpu"
    assert "no answer in 0.2 s" in caplog.text


def test_the_probe_is_the_code_that_gpus_run(monkeypatch):
    """On this build without GPUs, the probe's lines run against parts on the CPU and find what they must."""
    shards = faiss.IndexShards(64, True, True)
    parts = [faiss.IndexFlatIP(64) for _ in range(3)]
    for part in parts:
        shards.add_shard(part)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index, options: shards, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3)
    exec(probe.PROBE, {})
    assert [part.ntotal for part in parts] == [22, 21, 21]


def test_several_gpus_share_the_gallery(matrices, small_blocks, fresh_probe, monkeypatch):
    shards = faiss.IndexShards(24, True, True)
    parts = [faiss.IndexFlatIP(24) for _ in range(3)]
    for part in parts:
        shards.add_shard(part)
    pretend_gpus(monkeypatch, 3)
    options = []
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_all_gpus", lambda index, option: options.append(option) or shards, raising=False
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    found = shortlist(*matrices, 5)
    assert found.backend == "faiss-gpu"
    assert options[0].shard is True
    assert [part.ntotal for part in parts] == [85, 86, 86]
    assert (found.indices == best(*matrices, 5)).all()


def test_a_shortlist_too_deep_for_a_gpu_is_made_on_the_cpu(matrices, fresh_probe, monkeypatch, caplog):
    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setattr(building, "GPU_DEEPEST", 64)
    found = shortlist(*matrices, 65)
    assert found.backend == "faiss-cpu"
    assert (found.indices == best(*matrices, 65)).all()
    assert "at most 64 items per query on a GPU: searching for 65 on the CPU" in caplog.text


def test_rows_that_are_not_finite_are_named(matrices):
    broken = matrices[1].copy()
    broken[41, 3] = np.nan
    with pytest.raises(UserError, match=r"gallery holds NaN or infinite values in row 41"):
        shortlist(matrices[0], broken, 3)


@pytest.mark.usefixtures("small_blocks", "fresh_probe")
def test_clusters_on_several_gpus_find_what_one_index_finds(matrices, monkeypatch):
    """What cards hold of clusters, here on the CPU: ids are told, and do not follow one another."""
    shards, parts = faiss.IndexShards(24, True, False), []

    def spread(index, options):
        assert options.shard
        for _ in range(3):
            parts.append(faiss.clone_index(index))
            shards.add_shard(parts[-1])
        return shards

    pretend_gpus(monkeypatch, 3)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", spread, raising=False)
    queries, gallery = map(torch.from_numpy, matrices)
    chosen = IndexParameters("ivf", lists=4, probes=4)  # all of them: then it is exact
    index, where = build(gallery, chosen, 9)
    assert where == "faiss-gpu"
    assert min(part.ntotal for part in parts) > 50
    assert (search(index, queries, 9)[1] == best(*matrices, 9)).all()


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("hnsw", "FAISS has no hnsw on a GPU: searching on the CPU"),
        ("ivf", "a GPU takes no index ivf of this gallery (Error in alloc: out of memory): searching on the CPU"),
    ],
)
def test_what_a_gpu_does_not_take_is_searched_on_the_cpu(matrices, monkeypatch, caplog, kind, said):
    def full(index, options):
        raise RuntimeError("Error in alloc:\nout of memory")

    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", full, raising=False)
    queries, gallery = map(torch.from_numpy, matrices)
    index, where = build(gallery, plan(kind, len(gallery)), 5)
    assert where == "faiss-cpu"
    assert (search(index, queries, 1)[1] == best(*matrices, 1)).mean() > 0.9
    assert [record.getMessage() for record in caplog.records] == [said]
