"""Which backend runs, what it refuses, and how much it ever holds at once."""

import math
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allpairs.engine import backend, products, tiled
from allpairs.engine.batch import unit_rows
from allpairs.engine.rows import Rows
from allpairs.engine.tiled import PlainTiles
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
    with pytest.raises(UserError, match="float16, bfloat16 or float32 are accepted, not float64"):
        make("vlc")(queries, candidates, backend="triton")


class StandsInForFused(PlainTiles):
    """Plain tiles in the place of the fused ones: which were chosen, without a kernel that runs."""


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, computes on the CPU and notes the types of every matrix product."""

    is_cuda = True
    products: ClassVar[list[tuple[torch.dtype, ...]]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.__name__
        if name == "mm" and "out_dtype" in kwargs:  # a product that only CUDA has
            cls.products.append((args[0].dtype, args[1].dtype, kwargs["out_dtype"]))
            return args[0].to(kwargs["out_dtype"]) @ args[1].to(kwargs["out_dtype"])
        if name == "addmm":  # as torch has it from pytorch#167931 on
            assert kwargs["out"] is args[0]
            cls.products.append((args[1].dtype, args[2].dtype, kwargs["out_dtype"]))
            return args[0].add_(args[1].float() @ args[2].float())
        if name in ("matmul", "__matmul__", "addmm_") and args[0].dtype != torch.float32:
            raise AssertionError(f"{name} in {args[0].dtype}")
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("in_place", [True, False], ids=["added_in_place", "added_after"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("name", "fused_kernel"), [("vlc", True), ("goal", True), ("triplet", False), ("rsp", False)])
def test_half_precision_on_a_gpu_is_multiplied_in_half_and_summed_in_float32(
    name, fused_kernel, dtype, in_place, monkeypatch
):
    """What `auto` dispatches for CUDA: the tiles, and the types of the factors and the sum of every product."""
    monkeypatch.setattr(products, "_adds_in_place", lambda device, dtype: in_place)
    chosen: list[type] = []
    original = tiled.loss
    monkeypatch.setattr(
        backend.tiled, "loss", lambda *given, **how: chosen.append(how["tiles"]) or original(*given, **how)
    )
    monkeypatch.setattr(backend, "FusedTiles", StandsInForFused)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(OnGpu, "products", [])
    put_back = tiled._put_back  # autograd gives back what it saved as plain tensors
    monkeypatch.setattr(
        tiled, "_put_back", lambda kept, saved: put_back(kept, [tensor.as_subclass(OnGpu) for tensor in saved])
    )
    sides = [side.detach().repeat(4, 1).to(dtype) for side in embeddings()]  # enough for tiles
    leaves = [side.requires_grad_() for side in sides]
    loss = make(name)(*(side.as_subclass(OnGpu) for side in leaves), tile=500).as_subclass(torch.Tensor)
    gradients = torch.autograd.grad(loss, leaves)
    half = dtype != torch.float32
    assert chosen == [StandsInForFused if fused_kernel and half else PlainTiles]
    assert set(OnGpu.products) == ({(dtype, dtype, torch.float32)} if half else set())
    # Nine tiles forward; backward again, and two products of each, but where two columns per anchor say it all.
    assert len(OnGpu.products) == (0 if not half else 9 if name in ("goal", "rsp") else 36)
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients} == {dtype}


def normalised(rows, incoming):
    """Return unit rows and the gradient by `rows`, as each type is normalised."""
    if rows.dtype in (torch.float16, torch.bfloat16):
        sides = Rows.normalised(rows.detach())
        return sides[:], sides.to_given_(incoming.float()).to(rows.dtype)
    unit = unit_rows(rows)
    return unit, *torch.autograd.grad(unit, rows, incoming)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_normalised_as_in_float32(dtype):
    rows, _ = embeddings(dtype)
    incoming = torch.randn(PAIRS, SIZE, generator=torch.Generator().manual_seed(4)).to(dtype)
    precise = rows.detach().double().requires_grad_()
    expected = precise / precise.norm(dim=1, keepdim=True)
    actual, gradient = normalised(rows, incoming)
    assert actual.dtype == gradient.dtype == dtype
    step = torch.finfo(dtype).eps
    assert (actual.double() - expected).abs().max() <= step
    (expected_gradient,) = torch.autograd.grad(expected, precise, incoming.double())
    assert (gradient.double() - expected_gradient).norm() <= 2 * step * expected_gradient.norm()
    pieces = Rows.normalised(rows.detach())
    assert torch.equal(torch.cat([pieces[0:7], pieces[7:PAIRS]]), actual)
    assert torch.equal(pieces[torch.tensor([5, 2])], actual[[5, 2]])


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-13, 1.0, 1e13, 1e20, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_of_any_length_are_normalised_right(dtype, size):
    """Value, and gradient times the length, are those of the same rows in float64; also beside ordinary rows."""
    unit, _ = embeddings(torch.float64)
    rows = (unit.detach() / unit.detach().abs().amax(1, keepdim=True) * size).to(dtype)
    rows[::7] = unit.detach()[::7].to(dtype)
    incoming = torch.randn(PAIRS, SIZE, generator=torch.Generator().manual_seed(4)).to(dtype)
    precise = rows.double().requires_grad_()
    length = precise.detach().norm(dim=1, keepdim=True)
    expected = precise / precise.norm(dim=1, keepdim=True)
    (expected_gradient,) = torch.autograd.grad(expected, precise, incoming.double())
    actual, gradient = normalised(rows.requires_grad_(), incoming)
    step = torch.finfo(dtype).eps
    assert (actual.double() - expected).abs().max() <= step
    # A gradient below the smallest normal number has fewer digits, one above the largest is infinite.
    finfo = torch.finfo(dtype)
    inside = (expected_gradient.abs() > finfo.smallest_normal / step) & (expected_gradient.abs() < finfo.max)
    assert (gradient.double() - expected_gradient)[inside].mul(length.expand_as(rows)[inside]).abs().max() <= 8 * step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_of_zeros_stays_one(dtype):
    rows = torch.zeros(3, SIZE, dtype=dtype, requires_grad=True)
    unit, gradient = normalised(rows, torch.full_like(rows, 2.0**-20))
    assert unit.eq(0).all()
    assert gradient.float().eq(torch.tensor(2.0**-20 / 1e-12).to(dtype).float()).all()


@pytest.mark.parametrize("size", [1e-13, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_of_any_size_has_the_loss_of_its_directions(dtype, size):
    queries, candidates = (side.detach().to(dtype) for side in embeddings())
    power = 2.0 ** round(math.log2(size))
    for call in ({"backend": "dense"}, {"backend": "tiled", "tile": TILE}):
        assert torch.equal(make("vlc")(queries * power, candidates, **call), make("vlc")(queries, candidates, **call))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (
            torch.ones(3, 4).to(torch.float8_e4m3fn),
            "float16, bfloat16, float32, float64 are accepted, not float8_e4",
        ),
        (torch.ones(3, 4).to_sparse(), "dense embeddings are accepted, not sparse_coo; to_dense() makes them so"),
        (torch.ones(3, 4, device="meta"), "embeddings with numbers are accepted, not those of the device meta"),
        (torch.ones(3, 0), "[3, 0]: an embedding needs at least one number"),
    ],
)
@pytest.mark.parametrize("place", ["queries", "candidates"])
@pytest.mark.parametrize("name", ["dense", "tiled", "auto"])
def test_embeddings_that_no_backend_takes_are_refused(embeddings, message, place, name):
    both = {"queries": torch.ones(3, embeddings.shape[1]), "candidates": torch.ones(3, embeddings.shape[1])}
    with pytest.raises(UserError) as raised:
        make("vlc")(**{**both, place: embeddings}, backend=name)
    assert message in str(raised.value)


def test_ids_that_int64_cannot_hold_are_refused():
    ids = torch.tensor([1, 2**64 - 1, 3], dtype=torch.uint64)
    with pytest.raises(UserError, match="query_ids: integers below 2⁶³ are accepted"):
        make("vlc")(torch.eye(3), torch.eye(3), query_ids=ids)
    assert make("vlc")(
        torch.eye(3), torch.eye(3), query_ids=torch.tensor([1, 2, 2**63 - 1], dtype=torch.uint64)
    ).isfinite()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1], ids=["queries", "candidates"])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("name", names())
def test_a_row_that_is_not_finite_is_never_passed_over(name, backend, side, value):
    both = [rows.detach().clone() for rows in embeddings()]
    both[side][7, 3] = value
    assert make(name)(*both, backend=backend, tile=64).isnan()
