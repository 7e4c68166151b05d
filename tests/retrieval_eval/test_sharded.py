"""Galleries of any size: any number of shards gives the same bits, memory stays bounded, killed work goes on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allpairs.errors import UserError
from retrieval_eval import evaluate
from retrieval_eval.counting import GallerySlice
from retrieval_eval.inputs import as_tensor, pair_where_they_lie
from retrieval_eval.positives import Positives
from retrieval_eval.sharded import Problem, count
from retrieval_eval.sharded.actors import MappedFile
from retrieval_eval.sharded.run import in_process
from retrieval_eval.tiles import Blocks

ROOT = Path(__file__).parents[2]
TILE = 64  # 500 gallery items are 8 tile columns, 150 queries 3 tile rows


@pytest.fixture(scope="module")
def data():
    """Embeddings whose products round, with ragged positives and some copies."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.permutation(150), rng.integers(0, 150, 350)])
    queries = rng.normal(size=(150, 48)).astype(np.float32)
    gallery = (queries[ids] + 2 * rng.normal(size=(500, 48))).astype(np.float32)
    gallery[::17] = gallery[0]
    return queries, gallery, np.arange(150), ids


@pytest.fixture(scope="module")
def local_ray():
    """One Ray for the tests of this file, with room for seven actors."""
    ray.init(address="local", num_cpus=7, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def same(one, other):
    """Whether two reports hold the same bits."""
    assert one.metrics == other.metrics
    assert one.ties == other.ties
    for direction, counts in one.counts.items():
        for name in ("score", "greater", "equal", "equal_positives"):
            assert (getattr(counts, name) == getattr(other.counts[direction], name)).all()
        for name, values in one.per_query[direction].items():
            assert (values == other.per_query[direction][name]).all()
    return True


def test_one_two_and_seven_actors_give_the_same_bits(data, local_ray):
    whole = evaluate(*data, tile=TILE)
    seen = []
    for shards in (1, 2, 7):
        assert same(whole, evaluate(*data, tile=TILE, shards=shards, progress=lambda *at: seen.append(at)))
        # A step per unit, up to all of them.
        assert [done for done, _ in seen] == list(range(seen[-1][1] + 1))
        seen.clear()


def test_actors_normalise_what_they_map(data, local_ray, tmp_path):
    queries, gallery, *ids = data
    longer = [(side * (1 + np.arange(len(side)) % 7)[:, None]).astype(np.float32) for side in (queries, gallery)]
    files = [mapped(tmp_path, name, side) for name, side in zip("qg", longer, strict=True)]
    whole = evaluate(*longer, *ids, cosine=True, tile=TILE)
    assert same(whole, evaluate(*files, *ids, cosine=True, tile=TILE, shards=3))
    assert whole.metrics != evaluate(*longer, *ids, tile=TILE).metrics


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_the_twin_in_this_process_gives_the_same_bits(shards, both, seed):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.normal(size=(70, 20)), rng.normal(size=(128, 20))
    lists = [[q, q + 58] for q in range(70)]
    pairs = Positives.from_lists(lists, 128)
    problem = Problem(queries, gallery, pairs, both, torch.device("cpu"), tile=16)
    found = count(problem, shards=shards, executor=in_process)
    whole = count(problem)
    assert len(found) == len(whole) == 1 + both
    for one, other in zip(found, whole, strict=True):
        for name in ("score", "greater", "equal", "equal_positives"):
            assert (getattr(one, name) == getattr(other, name)).all()


def test_actors_search_slices_of_the_gallery(data, local_ray):
    """A list of several slices is that of the whole, copies of an item in two slices included."""
    queries, gallery, *ids = data
    searched = evaluate(queries, gallery, *ids, cosine=True, engine="faiss", shards=2)
    counted = evaluate(queries, gallery, *ids, cosine=True)
    assert searched.metrics == {name: counted.metrics[name] for name in searched.metrics}
    assert searched.searched["t2i"].by == "faiss-cpu, flat over 2 Ray actors"


@pytest.mark.parametrize("shards", [0, 9])
def test_refuses_more_shards_than_tile_columns(data, shards):
    with pytest.raises(UserError, match=rf"shards={shards}.* 8 tile columns of 64; accepted: 1 to 8"):
        evaluate(*data, tile=TILE, shards=shards)


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stop_after(units):
    def progress(done, total):
        if done >= units:
            raise StoppedError

    return progress


@pytest.mark.parametrize("after", [0, 2, 5])
def test_work_that_was_stopped_is_not_done_again(data, tmp_path, monkeypatch, after):
    arguments = {"tile": TILE, "state": tmp_path / "state"}
    with pytest.raises(StoppedError):
        evaluate(*data, **arguments, progress=stop_after(after))
    counted = []
    for name in ("count", "positive_scores"):
        original = getattr(GallerySlice, name)

        def spy(shard, rows, original=original):
            counted.append(rows)
            return original(shard, rows)

        monkeypatch.setattr(GallerySlice, name, spy)
    seen = []
    resumed = evaluate(*data, **arguments, progress=lambda *at: seen.append(at))
    total = seen[0][1]
    assert seen[0] == (after, total)
    assert len(counted) == total - after
    counted.clear()
    assert same(resumed, evaluate(*data, **arguments))
    assert not counted  # all of it is there
    assert same(resumed, evaluate(*data, tile=TILE))


def test_actors_go_on_where_others_stopped(data, tmp_path, local_ray):
    arguments = {"tile": TILE, "shards": 3, "state": tmp_path / "state"}
    with pytest.raises(StoppedError):
        evaluate(*data, **arguments, progress=stop_after(7))
    seen = []
    assert same(evaluate(*data, **arguments, progress=lambda *at: seen.append(at)), evaluate(*data, tile=TILE))
    assert seen[0][0] == 7


def test_the_death_of_an_actor_changes_nothing(data, local_ray):
    killed = []

    def kill_one(done, total):
        if done == 2:
            actors = [child for child in psutil.Process().children(recursive=True) if "_Actor" in child.name()]
            actors[0].kill()
            killed.append(actors[0].pid)

    found = evaluate(*data, tile=TILE, shards=2, progress=kill_one)
    assert killed
    assert same(found, evaluate(*data, tile=TILE))


def test_says_when_the_cluster_is_too_small(data, local_ray):
    with pytest.raises(UserError, match="shards=8: this Ray cluster has 7 CPUs, and each needs one"):
        evaluate(*data, tile=TILE, shards=8)


KILLED = """
import os, sys, numpy as np, torch
from retrieval_eval import evaluate
folder, after = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]))  # those of the one that goes on: the state belongs to one arithmetic
queries, gallery = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("queries", "gallery"))
evaluate(queries, gallery, np.arange(150), np.load(f"{folder}/ids.npy"), tile=64, state=f"{folder}/state",
         progress=lambda done, total: done == after and os.kill(os.getpid(), 9))
"""


def test_goes_on_after_a_kill(data, tmp_path):
    queries, gallery, _, ids = data
    for name, array in (("queries", queries), ("gallery", gallery), ("ids", ids)):
        np.save(tmp_path / f"{name}.npy", array)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "4", str(torch.get_num_threads())], cwd=ROOT, check=False
    )
    assert done.returncode == -9
    seen = []
    resumed = evaluate(*data, tile=TILE, state=tmp_path / "state", progress=lambda *at: seen.append(at))
    assert seen[0][0] == 4
    assert same(resumed, evaluate(*data, tile=TILE))


def test_refuses_the_state_of_something_else(data, tmp_path):
    queries, gallery, query_ids, ids = data
    evaluate(*data, tile=TILE, state=tmp_path / "state")
    changed = gallery.copy()
    changed[499, 47] += 1
    with pytest.raises(UserError, match=r"state holds the work of another evaluation \(gallery differ\)"):
        evaluate(queries, changed, query_ids, ids, tile=TILE, state=tmp_path / "state")
    with pytest.raises(UserError, match=r"\(directions, tile differ\)"):
        evaluate(*data, tile=32, state=tmp_path / "state", both_directions=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="accepted: a new or an empty folder"):
        evaluate(*data, state=tmp_path / "mine")


def test_names_a_damaged_file_of_the_state(data, tmp_path):
    evaluate(*data, tile=TILE, state=tmp_path)
    (tmp_path / "counts-0-64.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"counts-0-64.npz is damaged; delete it"):
        evaluate(*data, tile=TILE, state=tmp_path)


def mapped(folder, name, array):
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ">f4"])
def test_mapped_files_give_the_same_bits(data, tmp_path, dtype, recwarn):
    queries, gallery, query_ids, ids = data
    queries, gallery = queries.astype(dtype), gallery.astype(dtype)
    files = mapped(tmp_path, "queries", queries), mapped(tmp_path, "gallery", gallery)
    assert same(evaluate(*files, query_ids, ids, tile=TILE), evaluate(queries, gallery, query_ids, ids, tile=TILE))
    assert not recwarn.list


def test_actors_map_the_files_themselves(data, tmp_path, local_ray):
    queries, gallery, query_ids, ids = data
    files = mapped(tmp_path, "queries", queries)[10:], mapped(tmp_path, "gallery", gallery)
    assert MappedFile.of(files[0]).offset == 128 + 10 * 48 * 4  # after the header and ten rows
    found = evaluate(*files, query_ids[10:], ids, tile=TILE, shards=2, both_directions=False)
    assert same(found, evaluate(queries[10:], gallery, query_ids[10:], ids, tile=TILE, both_directions=False))


@pytest.mark.parametrize("part", [slice(None), slice(3, 9)])
def test_finds_the_file_behind_views_of_rows(tmp_path, part):
    array = np.arange(60, dtype=np.float32).reshape(12, 5)
    view = np.asarray(mapped(tmp_path, "x", array))[part]
    assert (MappedFile.of(view).open() == array[part]).all()
    assert MappedFile.of(view[:, 1:]) is None  # not contiguous: it travels
    assert MappedFile.of(array) is None


def test_nothing_float32_is_copied(tmp_path):
    array = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    file = mapped(tmp_path, "x", array)
    assert as_tensor(file).data_ptr() == file.ctypes.data
    assert pair_where_they_lie(file, file)[1].data_ptr() == file.ctypes.data


def test_reads_blocks_whose_size_the_gallery_does_not_change(monkeypatch):
    """The largest piece of embeddings that is ever made, for two galleries."""
    largest = []
    for size in (300, 3000):
        made = []

        def spy(blocks, start, at=Blocks.at, made=made):
            block = at(blocks, start)
            made.append(block.numel())
            return block

        rng = np.random.default_rng(0)
        queries, gallery = rng.normal(size=(5, 8)), rng.normal(size=(size, 8))
        with monkeypatch.context() as patch:
            patch.setattr(Blocks, "at", spy)
            evaluate(queries, gallery, positives=[[0]] * 5, both_directions=False, tile=TILE)
        assert len(made) > 2 * size // TILE
        largest.append(max(made))
    assert largest == [TILE * 8, TILE * 8]


BOUNDED = """
import resource, sys, numpy as np, torch
from pathlib import Path
from retrieval_eval import evaluate
def anonymous():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("VmData"))
torch.set_num_threads(1)
queries = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
small = np.random.default_rng(0).normal(size=(200, 4096)).astype(np.float32)
lists = [[q] for q in range(64)]
evaluate(queries, small, positives=lists, both_directions=False, tile=128)  # what a library allocates at first use
limit = anonymous() + (100 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
gallery = np.load(sys.argv[1], mmap_mode=sys.argv[2] if len(sys.argv) > 2 else None)
report = evaluate(queries, gallery, positives=lists, both_directions=False, tile=128)
print(report.metrics["i2t/mean_rank"])
"""


def test_memory_does_not_grow_with_a_gallery_on_disk(tmp_path):
    # 512 MiB of embeddings under a limit of 100 MiB on what the process may allocate: the file's pages are not counted.
    rows = 32768
    file = np.lib.format.open_memmap(tmp_path / "gallery.npy", "w+", np.float32, (rows, 4096))
    file[::4096] = 1  # mostly holes in the file
    file.flush()
    assert file.nbytes == 512 << 20
    mapped, read = (
        subprocess.run(
            [sys.executable, "-c", BOUNDED, str(tmp_path / "gallery.npy"), *mode],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )
        for mode in (["r"], [])
    )  # fmt: skip
    assert mapped.returncode == 0, mapped.stderr
    assert float(mapped.stdout) > 1
    assert "MemoryError" in read.stderr  # the limit is one that reading the file would break
