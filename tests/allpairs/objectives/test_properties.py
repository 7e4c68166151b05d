"""What holds for every batch: drawn shapes, ids, scales and tiles."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from allpairs.objectives import from_scores, make, weights_from_scores, weights_of_triplets
from tests.allpairs.objectives import cases

CASES = [pytest.param(*case, id=f"{case[0]}-{number}") for number, case in enumerate(cases.CASES)]
over_cases = pytest.mark.parametrize(("name", "arguments"), CASES)
seeds = st.integers(0, 2**16)


def examples(count: int) -> settings:
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


def near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= 1e-12 * expected.abs().max().item() + 1e-15


class Drawn:
    """A batch of float64 embeddings with ids; unequal lengths only for objectives that take their positives from ids.

    A coarse one has few distinct scores, exact in any order of summation: ties on purpose.
    """

    def __init__(self, name: str, data: st.DataObject, *, coarse: bool = False) -> None:
        generator = torch.Generator().manual_seed(data.draw(seeds, "seed"))
        size = data.draw(st.integers(2, 6), "D")
        queries = data.draw(st.integers(1, 9), "queries")
        has_ids = data.draw(st.booleans(), "has ids")
        in_sets = name in cases.SETS
        candidates = data.draw(st.integers(1, 9), "candidates") if in_sets and has_ids else queries
        instances = data.draw(st.integers(1, 9), "instances")

        def vectors(count: int) -> Tensor:
            if coarse:
                return torch.randint(-1, 2, (count, size), generator=generator).double() / 4
            return torch.randn(count, size, generator=generator, dtype=torch.float64)

        def ids(count: int) -> Tensor:
            return torch.randint(instances, (count,), generator=generator)

        self.generator = generator
        self.queries, self.candidates = vectors(queries), vectors(candidates)
        self.query_ids = ids(queries) if has_ids else None
        if in_sets:
            self.candidate_ids = ids(candidates) if has_ids else None
        else:
            self.candidate_ids = self.query_ids
        if has_ids and min(queries, candidates) > 1 and make(name).needs_negatives:
            assume(len({*self.query_ids.tolist(), *self.candidate_ids.tolist()}) > 1)  # or it is refused

    @property
    def ids(self) -> dict[str, Tensor | None]:
        return {"query_ids": self.query_ids, "candidate_ids": self.candidate_ids}


@over_cases
@examples(20)
@given(data=st.data())
def test_tiled_is_dense(name, arguments, data):
    coarse = data.draw(st.booleans(), "coarse")
    # The weight clamp(S, 0, 1) differentiated at 0 exactly is either one's choice.
    coarse = coarse and not (arguments.get("weighting") == "linear" and not arguments["detach_weights"])
    batch = Drawn(name, data, coarse=coarse)
    tile = data.draw(st.integers(1, 11), "tile")
    objective = make(name, **arguments, reduction=data.draw(st.sampled_from(["mean", "sum"])), normalize=not coarse)
    results = []
    for call in ({"backend": "dense"}, {"backend": "tiled", "tile": tile}):
        inputs = batch.queries.clone().requires_grad_(), batch.candidates.clone().requires_grad_()
        loss = objective(*inputs, **batch.ids, **call)
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs)))
    for tiled, dense in zip(results[1], results[0], strict=True):
        near(tiled, dense)


@over_cases
@examples(8)
@given(data=st.data())
def test_order_of_the_items_means_nothing(name, arguments, data):
    """Pairs move together; items with ids of their own move alone."""
    batch = Drawn(name, data)
    of_queries = torch.randperm(len(batch.queries), generator=batch.generator)
    alone = name in cases.SETS and batch.query_ids is not None
    of_candidates = torch.randperm(len(batch.candidates), generator=batch.generator) if alone else of_queries
    moved_ids = (
        {}
        if batch.query_ids is None
        else {"query_ids": batch.query_ids[of_queries], "candidate_ids": batch.candidate_ids[of_candidates]}
    )
    objective = make(name, **arguments)
    moved = batch.queries[of_queries], batch.candidates[of_candidates]
    for call in ({"backend": "dense"}, {"backend": "tiled", "tile": 4}):
        near(
            objective(*moved, **moved_ids, **call),
            objective(batch.queries, batch.candidates, **batch.ids, **call),
        )
    weights = objective.pair_weights(batch.queries, batch.candidates, **batch.ids)
    near(objective.pair_weights(*moved, **moved_ids), weights[of_queries][:, of_candidates])


@pytest.mark.parametrize(
    ("name", "arguments"), [case for case in CASES if case.values[0] not in ("smooth_ap", *cases.SETS)]
)
@examples(8)
@given(seed=seeds, count=st.integers(1, 6), instances=st.integers(1, 4))
def test_a_second_pair_of_an_instance_is_no_negative_of_it(name, arguments, seed, count, instances):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(instances, (count,), generator=generator)
    ids = torch.cat([ids, ids[:1]])
    assume(len(set(ids.tolist())) > 1)  # or it is refused
    S = torch.empty(count + 1, count + 1, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    objective = make(name, **arguments)
    losses, weights = [], []
    for score in (-2.0, 0.3, 2.0):
        T = S.clone()
        T[0, -1] = T[-1, 0] = score
        T.requires_grad_()
        loss = from_scores(objective, T, query_ids=ids)
        (gradient,) = torch.autograd.grad(loss, T)
        assert gradient[0, -1] == gradient[-1, 0] == 0
        losses.append(loss.item())
        weights.append(gradient)
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


# Every objective and scheme at its defaults, and where its docstring says that a negative may be pulled (below a score)
# or a positive pushed (above one, or anywhere).
FORCES = [
    *((name, {}) for name in cases.TABLE if name != "goal"),
    *(("unified", {"weighting": weighting}) for weighting in ("linear", "sigmoid", "ssp", "rsp")),
    *(("unified", {"weighting": weighting, "detach_weights": False}) for weighting in ("linear", "sigmoid")),
    *(("goal", {"triplet": t, "pair": p}) for t in cases.TRIPLET_WEIGHTS for p in cases.PAIR_WEIGHTS),
]
PULLED_BELOW = {"ssp": 2 / 9, "unified-weighting=ssp": 2 / 9, "unified-weighting=sigmoid-detach_weights=False": -0.1002}
PUSHED_ABOVE = {"unified-weighting=sigmoid-detach_weights=False": 0.7835, "smooth_ap": -1.0}


@pytest.mark.parametrize(("name", "arguments"), FORCES, ids=[cases.label(*case) for case in FORCES])
@examples(30)
@given(data=st.data())
def test_negatives_are_pushed_and_positives_are_pulled(name, arguments, data):
    """W ≥ 0 at negatives and W ≤ 0 at positives, or just where the docstring says otherwise."""
    batch = Drawn(name, data)
    objective = make(name, **arguments)
    S = torch.nn.functional.normalize(batch.queries) @ torch.nn.functional.normalize(batch.candidates).T
    if batch.query_ids is None:
        same = torch.eye(len(batch.queries), dtype=torch.bool)
    else:
        same = batch.query_ids[:, None] == batch.candidate_ids
    pair = arguments.get("pair", "")
    pulled_below = 0.0 if pair.startswith("lin") else PULLED_BELOW.get(cases.label(name, arguments), -torch.inf)
    pushed_above = -1.0 if pair == "lin_ms" else PUSHED_ABOVE.get(cases.label(name, arguments), torch.inf)
    for direction in ("rows", "columns"):
        W = objective.pair_weights(batch.queries, batch.candidates, **batch.ids, direction=direction)
        assert (W[~same & (pulled_below <= S)] >= 0).all()
        assert (W[same & (pushed_above >= S)] <= 0).all()


def test_where_a_docstring_says_otherwise_it_is_so():
    """Each exception above occurs: one triplet with these similarities of its positive and its negative."""
    for name, arguments, positive, negative in (
        ("ssp", {}, 0.05, 0.0),
        ("unified", {"weighting": "ssp"}, 0.0, 0.1),
        ("unified", {"weighting": "sigmoid", "detach_weights": False}, 0.0, -0.3),
        ("goal", {"pair": "lin"}, -0.3, -0.2),
        ("goal", {"pair": "lin_ms"}, -0.3, -0.2),
    ):
        scores = torch.tensor([positive], dtype=torch.float64), torch.tensor([negative], dtype=torch.float64)
        _, push = weights_of_triplets(make(name, **arguments), *scores)
        assert push < 0, (name, arguments)
    pull, _ = weights_of_triplets(
        make("unified", weighting="sigmoid", detach_weights=False, margin=2.0),
        *(torch.tensor([x], dtype=torch.float64) for x in (0.9, 0.8)),
    )
    assert pull < 0
    # lin_ms: the positives of its negatives lie more than 1 below the anchor's own.
    S = torch.tensor([[0.9, 0.95, 0.2], [0.1, -0.8, 0.1], [0.1, 0.1, -0.9]], dtype=torch.float64)
    assert weights_from_scores(make("goal", pair="lin_ms"), S, direction="rows")[0, 0] > 0
    # smooth_ap: of two positives below a negative, the higher one is pushed towards the lower.
    S = torch.tensor([[0.505, 0.5, 0.6]], dtype=torch.float64)
    W = weights_from_scores(
        make("smooth_ap"), S, query_ids=torch.tensor([0]), candidate_ids=torch.tensor([0, 0, 1]), direction="rows"
    )
    assert W[0, 0] > 0 > W[0, 1]


@examples(20)
@given(seed=seeds, items=st.integers(1, 8), queries_ask=st.booleans(), tile=st.integers(1, 5))
def test_smooth_ap_of_one_instance_is_perfect(seed, items, queries_ask, tile):
    """Any item of the instance that counted as a negative would cost precision. (Several on both sides are refused.)"""
    queries, candidates = (1, items) if queries_ask else (items, 1)
    generator = torch.Generator().manual_seed(seed)
    embeddings = [torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (queries, candidates)]
    ids = {"query_ids": torch.zeros(queries, dtype=torch.int64), "candidate_ids": torch.zeros(candidates).long()}
    objective = make("smooth_ap", temperature=0.1)
    for call in ({"backend": "dense"}, {"backend": "tiled", "tile": tile}):
        assert abs(objective(*embeddings, **ids, **call).item()) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "arguments"), cases.EXTREME)
@examples(25)
@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0]), min_size=16, max_size=16),
    ids=st.none() | st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_extreme_scores_stay_finite(name, arguments, dtype, values, ids):
    S = torch.tensor(values).reshape(4, 4).to(dtype).requires_grad_()
    objective = make(name, **arguments)
    assume(ids is None or len(set(ids)) > 1 or not objective.needs_negatives)  # or it is refused
    loss = from_scores(objective, S, query_ids=None if ids is None else torch.tensor(ids))
    (gradient,) = torch.autograd.grad(loss, S)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "arguments"), cases.EXTREME)
@examples(5)
@given(seed=seeds, ids=st.none() | st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_extreme_embeddings_stay_finite(name, arguments, dtype, seed, ids):
    """On a line, so that scores are −2 or 2, and in the plane; both backends."""
    generator = torch.Generator().manual_seed(seed)
    objective = make(name, **arguments, normalize=False)
    assume(ids is None or len(set(ids)) > 1 or not objective.needs_negatives)  # or it is refused
    for size in (1, 2):
        vectors = torch.randn(2, 5, size, generator=generator)
        inputs = [side.to(dtype).requires_grad_() for side in 2**0.5 * torch.nn.functional.normalize(vectors, dim=-1)]
        for call in ({"backend": "dense"}, {"backend": "tiled", "tile": 2}):
            loss = objective(*inputs, query_ids=None if ids is None else torch.tensor(ids), **call)
            assert loss.isfinite()
            assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, inputs))
