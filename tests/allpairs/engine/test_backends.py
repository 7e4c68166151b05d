"""Which backend runs, what it refuses, and how much it ever holds at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allpairs.engine.batch import unit_rows
from allpairs.errors import UserError
from allpairs.objectives import make, names

PAIRS, SIZE, TILE = 300, 16, 20
KINDS = [
    ("triplet", {}),
    ("triplet_hn", {}),
    ("vlc", {"scale": 20.0}),
    ("unified", {"weighting": "rsp"}),
    ("goal", {"triplet": "nca", "pair": "sig_ms"}),
    ("multi_similarity", {}),
    ("smooth_ap", {}),
]


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes while it is on, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def embeddings(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(PAIRS, SIZE, generator=generator)
    candidates = queries + torch.randn(PAIRS, SIZE, generator=generator)
    return queries.to(dtype).requires_grad_(), candidates.to(dtype).requires_grad_()


def largest(name, arguments, **call):
    objective = make(name, **arguments)
    with Largest() as seen:
        objective(*embeddings(), **call).backward()
    return seen.numel


@pytest.mark.parametrize(("name", "arguments"), KINDS, ids=[kind[0] for kind in KINDS])
def test_tiles_never_hold_more_than_the_embeddings_and_a_tile(name, arguments):
    assert largest(name, arguments, backend="tiled", tile=TILE) <= max(PAIRS * SIZE, TILE * TILE)
    assert largest(name, arguments, backend="dense") >= PAIRS * PAIRS


def test_auto_holds_the_matrix_of_a_small_batch_and_tiles_a_large_one():
    assert largest("vlc", {}, backend="auto") >= PAIRS * PAIRS
    objective = make("vlc")
    queries = torch.randn(1100, 16, requires_grad=True)
    with Largest() as seen:
        objective(queries, queries.detach().roll(1, 0)).backward()
    assert seen.numel < 1100 * 1100


@pytest.mark.parametrize("tile", [0, -3, 2.5, True, "8"])
def test_an_impossible_tile_is_refused(tile):
    with pytest.raises(UserError, match=r"tile=.* is impossible; accepted: a whole number from 1"):
        make("vlc")(*embeddings(), backend="tiled", tile=tile)


@pytest.mark.parametrize("name", ["triplet", "circle", "smooth_ap"])
def test_triton_refuses_an_objective_without_a_kernel(name):
    with pytest.raises(UserError, match="has no fused kernel; accepted for it: auto, dense, tiled"):
        make(name)(*embeddings(), backend="triton")


def test_triton_refuses_what_its_kernels_cannot_take():
    queries, candidates = embeddings(torch.float64)
    with pytest.raises(UserError, match="multiple of 16 are accepted, not float64"):
        make("vlc")(queries, candidates, backend="triton")
    with pytest.raises(UserError, match=r"multiple of 16 are accepted, not float32 \[300, 15\]"):
        make("vlc")(queries[:, :15].float(), candidates[:, :15].float(), backend="triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_normalised_as_in_float32(dtype):
    rows, _ = embeddings(dtype)
    incoming = torch.randn(PAIRS, SIZE, generator=torch.Generator().manual_seed(4)).to(dtype)
    precise = rows.detach().double().requires_grad_()
    expected = precise / precise.norm(dim=1, keepdim=True)
    actual = unit_rows(rows)
    assert actual.dtype == dtype
    step = torch.finfo(dtype).eps
    assert (actual.double() - expected).abs().max() <= step
    (gradient,) = torch.autograd.grad(actual, rows, incoming)
    (expected_gradient,) = torch.autograd.grad(expected, precise, incoming.double())
    assert (gradient.double() - expected_gradient).norm() <= 2 * step * expected_gradient.norm()
    assert unit_rows(torch.zeros(2, SIZE, dtype=dtype)).eq(0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1], ids=["queries", "candidates"])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("name", names())
def test_a_row_that_is_not_finite_is_never_passed_over(name, backend, side, value):
    both = [rows.detach().clone() for rows in embeddings()]
    both[side][7, 3] = value
    assert make(name)(*both, backend=backend, tile=64).isnan()
