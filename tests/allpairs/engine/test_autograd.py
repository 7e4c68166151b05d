"""An objective is to autograd, autocast and torch.compile what any operation of PyTorch is, on every backend."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from allpairs.engine import tiled
from allpairs.engine.batch import prepare
from allpairs.engine.exchange import RankLayout
from allpairs.engine.global_batch import GlobalBatch
from allpairs.engine.tiled import PlainTiles, TileSizes
from allpairs.errors import UserError
from allpairs.objectives import from_scores, make
from tests.allpairs.objectives import cases

PAIRS = 12
IDS = torch.tensor([0, 1, 2, 3, 0, 5, 6, 1, 8, 0, 10, 11])
BACKENDS = {"dense": {"backend": "dense"}, "tiled": {"backend": "tiled", "tile": 5}}
KINDS = {cases.label(name, arguments): (name, arguments) for name, arguments in cases.CASES}
over_backends = pytest.mark.parametrize("call", BACKENDS.values(), ids=BACKENDS)
over_kinds = pytest.mark.parametrize(("name", "arguments"), KINDS.values(), ids=KINDS)


def embeddings(dtype: torch.dtype = torch.float32, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    queries = torch.randn(PAIRS, size, generator=generator)
    candidates = queries + torch.randn(PAIRS, size, generator=generator)
    return queries.to(dtype).requires_grad_(), candidates.to(dtype).requires_grad_()


# --- autocast and the precision of float32 products ------------------------------------------------------------------


@over_backends
@over_kinds
def test_backward_inside_autocast_is_that_outside(name, arguments, call):
    inputs, objective = embeddings(), make(name, **arguments)
    loss = objective(*inputs, query_ids=IDS, **call)
    outside = torch.autograd.grad(loss, inputs, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(loss, inputs, retain_graph=True)
        both = torch.autograd.grad(objective(*inputs, query_ids=IDS, **call), inputs)
    for expected, *actual in zip(outside, inside, both, strict=True):
        assert all(torch.equal(gradient, expected) for gradient in actual)


@over_kinds
def test_backward_of_scores_inside_autocast_is_that_outside(name, arguments):
    S = torch.rand(PAIRS, PAIRS, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = from_scores(make(name, **arguments), S, query_ids=IDS)
    (outside,) = torch.autograd.grad(loss, S, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = torch.autograd.grad(loss, S)
    assert torch.equal(inside, outside)


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


class Products(TorchDispatchMode):
    """Notes at every matrix product how precise products of float32 are to be."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm"):
            self.seen.append(precisions())
        return operation(*args, **(kwargs or {}))


def allow_everywhere() -> None:
    torch.set_float32_matmul_precision("medium")


def allow_on_cuda() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def allow_on_cpu() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


@pytest.fixture(params=[allow_everywhere, allow_on_cuda, allow_on_cpu])
def shortened(request) -> Iterator[tuple[str, str]]:
    request.param()
    yield precisions()
    for library in (torch.backends.cuda, torch.backends.mkldnn):
        library.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@over_backends
@pytest.mark.parametrize("name", ["vlc", "triplet_hn", "lifted"])
def test_float32_products_are_full_whatever_is_allowed_outside(name, call, shortened):
    with Products() as products:
        make(name)(*embeddings(), **call).backward()
    assert len(products.seen) >= 1
    assert {precision for seen in products.seen for precision in seen} <= {"ieee", "none"}
    assert precisions() == shortened != ("ieee", "ieee")


# --- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("changed", ["queries", "candidates", "ids", "margins"])
@pytest.mark.parametrize("name", ["unified", "triplet_hn"])
def test_a_change_between_forward_and_backward_raises(name, changed, normalize):
    queries, candidates = (side * 1 for side in embeddings())
    given = {"queries": queries, "candidates": candidates, "ids": IDS.clone(), "margins": torch.rand(PAIRS)}
    objective = make(name, normalize=normalize)
    call = {"query_ids": given["ids"], "margins": given["margins"], "backend": "tiled", "tile": 5}
    loss = objective(queries, candidates, **call)
    given[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("name", "arguments"), [("vlc", {"learn_scale": True}), ("triplet_hn", {}), ("smooth_ap", {})])
def test_embeddings_are_freed_after_backward_while_the_loss_is_held(name, arguments):
    inputs = [side * 1 for side in embeddings()]
    saved = [StorageWeakRef(side.untyped_storage()) for side in inputs]
    loss = make(name, **arguments, normalize=False)(*inputs, query_ids=IDS, backend="tiled", tile=5)
    del inputs
    assert not any(storage.expired() for storage in saved)
    loss.backward()
    assert all(storage.expired() for storage in saved)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("name", ["vlc", "triplet_hn"])
def test_a_second_derivative_is_right_or_refused(name):
    queries, candidates = embeddings(torch.float64, size=4)

    def gradient(**call: object) -> Tensor:
        (result,) = torch.autograd.grad(make(name)(queries, candidates, **call), queries, create_graph=True)
        return result

    assert torch.autograd.gradgradcheck(lambda rows: make(name)(rows, candidates, backend="dense"), queries)
    tiled_gradient = gradient(backend="tiled")
    torch.testing.assert_close(tiled_gradient, gradient(backend="dense"), rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match="gradient of a loss was differentiated again, which only backend='dense'"):
        (tiled_gradient**2).sum().backward()


# --- around the call -------------------------------------------------------------------------------------------------


@over_backends
def test_a_compiled_model_leaves_the_objective_alone(call):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(16, 16)
            self.objective = make("smooth_ap")

        def forward(self, queries: Tensor, candidates: Tensor) -> Tensor:
            return 2 * self.objective(self.encoder(queries), self.encoder(candidates), query_ids=IDS, **call)

    graphs: list[list[str]] = []

    def compiler(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append([node.name for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch._dynamo.reset()
    model = Model()
    inputs = [side.detach() for side in embeddings()]
    expected = model(*inputs)
    actual = torch.compile(model, backend=compiler)(*inputs)
    assert torch.equal(actual, expected)
    for one, other in zip(
        *(torch.autograd.grad(x, model.encoder.parameters()) for x in (actual, expected)), strict=True
    ):
        assert torch.equal(one, other)
    # What comes before it and what comes after it; nothing of it.
    assert [len(graph) for graph in graphs] == [2, 1]


@pytest.mark.parametrize("normalize", [True, False])
@over_backends
def test_a_side_that_was_made_in_inference_mode_is_frozen(call, normalize):
    queries, candidates = embeddings()
    with torch.inference_mode():
        frozen = candidates.detach() * 1
    objective = make("vlc", normalize=normalize)
    (actual,) = torch.autograd.grad(objective(queries, frozen, **call), queries)
    (expected,) = torch.autograd.grad(objective(queries, candidates.detach(), **call), queries)
    assert torch.equal(actual, expected)


def test_functional_transforms_are_right_or_refused():
    queries, candidates = (side.detach() for side in embeddings())
    leaf = queries.clone().requires_grad_()
    make("vlc")(leaf, candidates, backend="dense").backward()
    actual = torch.func.grad(lambda rows: make("vlc")(rows, candidates))(queries)
    torch.testing.assert_close(actual, leaf.grad)
    with pytest.raises(UserError, match=r"'tiled' knows no transforms of torch[.]func; accepted under them"):
        torch.func.grad(lambda rows: make("vlc")(rows, candidates, backend="tiled"))(queries)


# --- half precision in plain tiles -----------------------------------------------------------------------------------


def in_half(objective: nn.Module, sides: tuple[Tensor, Tensor], incoming: float = 1.0) -> list[Tensor]:
    """Return loss and gradients as plain tiles find them on a GPU: products of half precision, sums in float32."""
    leaves = [side.clone().requires_grad_() for side in sides]
    batch = prepare(*leaves, query_ids=IDS, own_positive=objective.own_positive, keep_half=True)
    layout = RankLayout([PAIRS], [PAIRS], 0, None)
    whole = GlobalBatch.gathered(objective, batch, layout)
    loss = tiled.loss(objective, batch, layout, whole, tile=TileSizes(7, 5), tiles=PlainTiles)
    return [loss.detach(), *torch.autograd.grad(loss * incoming, leaves)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2.0**-9), (torch.bfloat16, 2.0**-6)])
@pytest.mark.parametrize(
    "name", ["triplet", "vlc", "rsp", "unified", "binomial_deviance", "lifted", "multi_similarity", "circle"]
)
def test_plain_tiles_of_half_precision_are_the_dense_backend_of_float32(name, dtype, tolerance):
    objective = make(name, **cases.TABLE[name].gentle)
    sides = [side.detach().to(dtype) for side in embeddings()]
    loss, *gradients = in_half(objective, sides)
    # Both see unit rows that are rounded to half precision.
    leaves = [side[:].float().requires_grad_() for side in prepare(*sides, keep_half=True).rows()]
    objective.normalize = False
    expected = objective(*leaves, query_ids=IDS, backend="dense")
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    for gradient, side, leaf, whole in zip(
        gradients, sides, leaves, torch.autograd.grad(expected, leaves), strict=True
    ):
        assert gradient.dtype == dtype
        along = (whole * leaf).sum(1, keepdim=True)
        wanted = (whole - along * leaf) / side.float().norm(dim=1, keepdim=True)
        assert (gradient.float() - wanted).norm() <= 2 * tolerance * wanted.norm() + 1e-6


FAR_APART = {"vlc": {"scale": 30.0}, "unified": {"weighting": "rsp", "margin": 0.0, "scale": 30.0}}


@pytest.mark.parametrize("name", FAR_APART)
def test_small_weights_of_float16_do_not_vanish(name):
    """Pairs so far apart that hardly a weight reaches the smallest number of float16; a loss scaler lifts the rest."""
    vectors = torch.eye(PAIRS, 16) + 0.1 * torch.randn(2, PAIRS, 16, generator=torch.Generator().manual_seed(2))
    sides = [side.to(torch.float16) for side in vectors]
    objective = make(name, **FAR_APART[name])
    W = objective.pair_weights(*(side.float() for side in sides), query_ids=IDS)
    assert (W[IDS[:, None] != IDS] < 6e-8).float().mean() > 0.8
    leaves = [side.float().requires_grad_() for side in sides]
    expected = torch.autograd.grad(objective(*leaves, query_ids=IDS, backend="dense") * 2.0**24, leaves)
    for gradient, wanted in zip(in_half(objective, sides, incoming=2.0**24)[1:], expected, strict=True):
        assert (gradient.float() - wanted).norm() <= 0.01 * wanted.norm()
