"""The triton backend as a whole: the same loss and gradient as the dense one, alone and across ranks."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from allpairs.engine import chunks, global_value
from allpairs.engine.fused.tiles import FusedTiles
from allpairs.errors import UserError
from allpairs.objectives import make, names
from tests.allpairs.objectives import cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 32
KINDS = {
    cases.label(name, arguments): (name, arguments) for name, case in cases.TABLE.items() for arguments in case.kernels
}
EXCHANGED = [kind for kind in KINDS if kind != "vlc-scale=100.0"]
"""Across ranks; at the scale 100 the exponents' own rounding in float32 is above 1e-6."""
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
"""In half precision W and the gradients are rounded to it, to 2⁻¹¹ and 2⁻⁸ each."""


def embeddings(pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rows rounded to `dtype`, so that all backends look at the same numbers, and ids with duplicates."""
    generator = torch.Generator().manual_seed(pairs)
    queries = torch.randn(pairs, SIZE, generator=generator)
    candidates = queries + 1.5 * torch.randn(pairs, SIZE, generator=generator)
    queries, candidates = (torch.nn.functional.normalize(x, dim=1).to(dtype) for x in (queries, candidates))
    return queries, candidates, torch.randint(pairs, (pairs,), generator=generator)


def step(kind: str, inputs: tuple[Tensor, Tensor], ids: Tensor | None, group: object = None, **call: object) -> list:
    """Return the loss and the gradients of embeddings and parameters."""
    name, arguments = KINDS[kind]
    objective = make(name, **arguments, normalize=False).to(inputs[0].device)
    leaves = [x.clone().requires_grad_() for x in inputs]
    loss = objective(*leaves, query_ids=ids, group=group, **call)
    return [global_value(loss, group), *torch.autograd.grad(loss, [*leaves, *objective.parameters()])]


def test_every_objective_with_a_kernel_is_compared():
    assert {name for name, _ in KINDS.values()} == {name for name in names() if make(name).kernel is not None}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("pairs", "tile"), [(50, None), (19, 7), (1, None)])
@pytest.mark.parametrize("with_ids", [False, True], ids=["no_ids", "ids"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_dense_backend(kind, with_ids, pairs, tile, dtype):
    queries, candidates, ids = embeddings(pairs, dtype)
    ids = ids.to(DEVICE) if with_ids else None
    expected = step(kind, (queries.float().to(DEVICE), candidates.float().to(DEVICE)), ids, backend="dense")
    actual = step(kind, (queries.to(DEVICE), candidates.to(DEVICE)), ids, backend="triton", tile=tile)
    assert [x.dtype for x in actual[1:3]] == [dtype, dtype]
    # Scores of half-precision embeddings are exact: the value is that of float32.
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=2e-6, abs=1e-6)
    for place, (one, other) in enumerate(zip(actual, expected, strict=True)):
        # The scale's gradient is a sum of W·S over a few dozen anchors in which much cancels.
        tolerance = TOLERANCE[dtype] * (1 if place < 3 else 2)
        # An absolute floor for what is 0 in exact arithmetic.
        assert (one.float() - other).norm() <= tolerance * other.norm() + 1e-6


@pytest.mark.parametrize("ids", ["none", "within", "across"])
@pytest.mark.parametrize("kind", [kind for kind, (name, _) in KINDS.items() if name not in cases.SETS])
def test_equal_texts_are_no_negatives_of_the_kernels_either(kind, ids, monkeypatch):
    queries, candidates, texts = embeddings(40, torch.float32)
    order = torch.arange(40)
    first = (texts[:, None] == texts).int().argmax(dim=1)  # the first pair of the same text
    candidates = candidates[first]
    # None, those that meet only within a text, and those that no single id can join with the texts.
    given = {"none": None, "within": torch.where(order % 3 == 0, first, 40 + order), "across": order // 2}[ids]
    fused = []
    original = FusedTiles.statistics
    monkeypatch.setattr(FusedTiles, "statistics", lambda *given: fused.append(1) or original(*given))
    sides = queries.to(DEVICE), candidates.to(DEVICE)
    call = {"text_ids": texts.to(DEVICE)}
    given = None if given is None else given.to(DEVICE)
    expected = step(kind, sides, given, backend="dense", **call)
    for one, other in zip(step(kind, sides, given, backend="triton", tile=23, **call), expected, strict=True):
        assert (one - other).norm() <= 2e-6 * other.norm() + 1e-6
    assert bool(fused) == (ids != "across"), "what no single id can say is computed in plain tiles"
    assert (step(kind, sides, given, backend="dense")[0] - expected[0]).abs() > 1e-3, "texts do mask something"


def test_kernels_of_sets_refuse_equal_texts():
    sides = [side.to(DEVICE) for side in embeddings(4, torch.float32)[:2]]
    with pytest.raises(UserError, match="backend='triton': SigLIP's kernel takes no text_ids; accepted with them: au"):
        make("siglip")(*sides, text_ids=torch.arange(4), backend="triton")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["vlc-scale=20.0", "triplet_hn-margin=0.3"])
def test_any_embedding_size_and_any_place_in_memory(kind, dtype):
    """Twenty numbers are no multiple of 16, and rows that begin at an odd number not aligned to 16 bytes."""
    queries, candidates, ids = embeddings(37, dtype)
    odd = [torch.empty(37 * 20 + 1, dtype=dtype)[1:].view(37, 20).copy_(side[:, :20]) for side in (queries, candidates)]
    assert all(side.data_ptr() % 16 for side in odd)
    expected = step(kind, tuple(side.float().to(DEVICE) for side in odd), ids.to(DEVICE), backend="dense")
    actual = step(kind, tuple(side.to(DEVICE) for side in odd), ids.to(DEVICE), backend="triton", tile=20)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert (one.float() - other).norm() <= TOLERANCE[dtype] * other.norm() + 1e-6
    aligned = tuple(torch.nn.functional.pad(side, (0, 12)) for side in odd)
    for one, other in zip(actual, step(kind, aligned, ids.to(DEVICE), backend="triton", tile=20), strict=True):
        assert torch.equal(one, other[..., :20] if other.ndim == 2 else other)


@pytest.mark.parametrize("kind", ["vlc-scale=20.0", "unified-margin=0.2-scale=20.0", "nt_xent_hn"])
def test_backward_inside_autocast_is_that_outside(kind):
    queries, candidates, ids = embeddings(37, torch.bfloat16)
    outside = step(kind, (queries.to(DEVICE), candidates.to(DEVICE)), ids.to(DEVICE), backend="triton")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside = step(kind, (queries.to(DEVICE), candidates.to(DEVICE)), ids.to(DEVICE), backend="triton")
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


def test_small_weights_of_float16_do_not_vanish():
    """Pairs so far apart that hardly a weight reaches the smallest number of float16; a loss scaler lifts the rest."""
    vectors = torch.eye(24, SIZE) + 0.05 * torch.randn(2, 24, SIZE, generator=torch.Generator().manual_seed(2))
    sides = [side.to(DEVICE, torch.float16) for side in vectors]
    objective = make("vlc", scale=30.0)
    W = objective.pair_weights(*(side.float() for side in sides))
    assert (W < 6e-8).float().mean() > 0.9
    gradients = []
    for dtype, backend in ((torch.float16, "triton"), (torch.float32, "dense")):
        leaves = [side.to(dtype).requires_grad_() for side in sides]
        gradients.append(torch.autograd.grad(objective(*leaves, backend=backend) * 2.0**24, leaves))
    for gradient, wanted in zip(*gradients, strict=True):
        assert (gradient.float() - wanted).norm() <= 0.01 * wanted.norm()


def normalised_step(queries: Tensor, candidates: Tensor, **call: object) -> tuple[Tensor, ...]:
    """Return the gradients of half-precision embeddings of any length."""
    leaves = [(3 * side).bfloat16().requires_grad_() for side in (queries, candidates)]
    return torch.autograd.grad(make("vlc", scale=20.0)(*leaves, **call), leaves)


def run_rank(rank: int, directory: str, counts: list[int]) -> None:
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=3, timeout=timedelta(seconds=120))
    torch.set_num_threads(1)
    chunks.LEAST_COLUMNS = 40  # two chunks, whose tiles look at columns from several places
    rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    queries, candidates, ids = embeddings(sum(counts), torch.float32)
    results = {
        kind: step(kind, (queries[rows], candidates[rows]), ids[rows], dist.group.WORLD, backend="triton", tile=20)
        for kind in EXCHANGED
    }
    # Each rank multiplies its loss by a factor of its own, and one by 0.
    for backend, dtype in (("triton", torch.float32), ("dense", torch.float64)):
        leaves = [side[rows].to(dtype).requires_grad_() for side in (queries, candidates)]
        loss = make("vlc", scale=20.0, normalize=False)(*leaves, group=dist.group.WORLD, backend=backend)
        results[f"factors-{backend}"] = torch.autograd.grad(loss * (2.0 * rank), leaves)
    results["normalised"] = normalised_step(queries[rows], candidates[rows], group=dist.group.WORLD, backend="triton")
    torch.save(results, Path(directory) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("counts", [[13, 25, 4], [30, 0, 12]], ids=str)
def test_three_ranks_equal_one_process(counts, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # gloo exchanges what is on the CPU; the ranks start afresh
    torch.multiprocessing.start_processes(run_rank, (str(tmp_path), counts), nprocs=3, start_method="spawn")
    queries, candidates, ids = embeddings(sum(counts), torch.float32)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(3)]
    for rank in ranks:
        for one, other in zip(rank["factors-triton"], rank["factors-dense"], strict=True):
            # An exponent of 20·S is rounded to 20·2⁻²⁴ in float32, in forward and in backward.
            assert (one - other).norm() <= 40 * 2.0**-24 * other.norm()
    for place, whole in enumerate(normalised_step(queries, candidates, backend="dense")):
        joined = torch.cat([rank["normalised"][place] for rank in ranks]).float() / 3
        assert (joined - whole.float()).norm() <= 2 * TOLERANCE[torch.bfloat16] * whole.float().norm()
    for kind in EXCHANGED:
        loss, *expected = step(kind, (queries, candidates), ids, backend="dense")
        for rank in ranks:
            assert rank[kind][0] == pytest.approx(loss.item(), rel=1e-6)
        for place, whole in enumerate(expected[:2], start=1):
            # A rank's gradient is N times its share, which DistributedDataParallel's averaging takes back.
            joined = torch.cat([rank[kind][place] for rank in ranks]) / 3
            assert (joined - whole).norm() <= 1e-6 * whole.norm()
        for place, parameter in enumerate(expected[2:], start=3):
            averaged = sum(rank[kind][place] for rank in ranks) / 3
            assert averaged.item() == pytest.approx(parameter.item(), rel=1e-5)
