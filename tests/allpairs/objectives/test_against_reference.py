"""Every objective against the written-out formulas: value, gradient and pair weights, in float64, on every backend."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from allpairs.errors import UserError
from allpairs.objectives import from_scores, make, names
from tests.allpairs.objectives import cases, reference


@dataclass(frozen=True)
class Batch:
    queries: int
    candidates: int
    query_ids: tuple[int, ...] | None = None
    candidate_ids: tuple[int, ...] | None = None
    text_ids: tuple[int, ...] | None = None

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Candidates near a query of their id, where there is one."""
        generator = torch.Generator().manual_seed(3)
        queries = torch.randn(self.queries, 5, generator=generator, dtype=torch.float64)
        noise = torch.randn(self.candidates, 5, generator=generator, dtype=torch.float64)
        query_ids = list(self.query_ids or range(self.queries))
        candidate_ids = list(self.candidate_ids or query_ids)
        if self.queries == self.candidates:
            near = queries
        else:
            near = torch.stack(
                [queries[query_ids.index(j)] if j in query_ids else 0 * queries[0] for j in candidate_ids]
            )
        candidates = 0.8 * near + noise
        return queries.requires_grad_(), candidates.requires_grad_()

    def ids(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value) for name, value in self.given().items() if value is not None}

    def given(self) -> dict[str, tuple[int, ...] | None]:
        return {"query_ids": self.query_ids, "candidate_ids": self.candidate_ids, "text_ids": self.text_ids}


PAIRS = {
    "no_ids": Batch(7, 7),
    "ids": Batch(7, 7, query_ids=(0, 1, 0, 2, 3, 1, 0)),
    # 0 and 2 by id, 2 and 4 by text, 0 and 4 by neither: no single id says this.
    "ids_and_texts": Batch(7, 7, query_ids=(0, 1, 0, 2, 3, 1, 5), text_ids=(7, -8, 2**62, 7, 2**62, 9, 5)),
    "two_instances": Batch(7, 7, candidate_ids=(5, 5, 5, 6, 5, 5, 5)),
}
SETS = {
    **PAIRS,
    "one_instance": Batch(7, 7, candidate_ids=(5,) * 7),  # refused by who needs negatives
    "five_captions": Batch(
        4, 20, (10, 11, 12, 13), (11, 10, 13, 12, 10, 13, 12, 11, 12, 13, 10, 11, 13, 12, 11, 10, 11, 13, 10, 12)
    ),
    "shared_captions": Batch(
        4, 9, (10, 11, 12, 13), (11, 10, 13, 12, 10, 13, 12, 11, 14), text_ids=(1, 2, 3, 2, 4, 1, 5, 6, 4)
    ),
    "unmatched": Batch(5, 8, (1, 2, 3, 2, 4), (2, 2, 9, 1, 4, 9, 4, 2)),  # no positive for 3 and for both 9
}
BACKENDS = {
    "dense": {"backend": "dense"},
    "tile3": {"backend": "tiled", "tile": 3},
    "tile5": {"backend": "tiled", "tile": 5},
}
LEARNED = ("vlc", {"scale": 12.0, "learn_scale": True})


RUNS = [
    pytest.param(name, arguments, layout, id=f"{cases.label(name, arguments)}-{layout}")
    for name, arguments in cases.CASES
    for layout in (SETS if name in cases.SETS else PAIRS)
    if layout != "one_instance" or not make(name).needs_negatives
]
over_runs = pytest.mark.parametrize(("name", "arguments", "layout"), RUNS)
over_reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])
over_backends = pytest.mark.parametrize("call", BACKENDS.values(), ids=BACKENDS)


def close(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-12 of the largest number there; 1e-15 stands for what is 0 but for rounding."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= 1e-12 * expected.abs().max().item() + 1e-15


@dataclass
class Expected:
    value: Tensor
    weights: tuple[Tensor, Tensor]
    gradients: tuple[Tensor, ...]


MARGINS = (0.0, 0.4, -0.1, 0.2, 0.9, 0.3, 0.05)


@functools.cache
def reference_embeddings(layout: str) -> tuple[tuple[Tensor, Tensor], Tensor]:
    embeddings = SETS[layout].embeddings()
    return embeddings, reference.scores(*map(reference.unit, embeddings))


@functools.cache
def expected_of(case: int, layout: str, reduction: str, with_margins: bool = False) -> Expected:
    """The loops, once for all backends; the gradient goes from W through the loops that made the scores."""
    name, arguments = cases.CASES[case]
    batch = SETS[layout]
    embeddings, S = reference_embeddings(layout)
    given = {
        **batch.given(),
        "margins": MARGINS if with_margins else None,
        "reduction": reduction,
        **arguments,
    }
    weights = cases.directed_weights(name, S, **given)
    gradients = torch.autograd.grad(S, embeddings, weights[0] + weights[1], retain_graph=True)
    return Expected(cases.loss(name, S.detach(), **given), weights, gradients)


def expect(
    name: str, arguments: dict[str, object], layout: str, reduction: str, with_margins: bool = False
) -> Expected:
    return expected_of(cases.CASES.index((name, arguments)), layout, reduction, with_margins)


@over_backends
@over_reductions
@over_runs
def test_value_and_gradient(name, arguments, layout, reduction, call):
    expected = expect(name, arguments, layout, reduction)
    embeddings = SETS[layout].embeddings()
    actual = make(name, **arguments, reduction=reduction)(*embeddings, **SETS[layout].ids(), **call)
    close(actual, expected.value)
    for one, other in zip(torch.autograd.grad(actual, embeddings), expected.gradients, strict=True):
        close(one, other)


@over_reductions
@over_runs
def test_pair_weights_are_the_derivative_by_the_scores(name, arguments, layout, reduction):
    of_queries, of_candidates = expect(name, arguments, layout, reduction).weights
    objective = make(name, **arguments, reduction=reduction)
    embeddings, ids = SETS[layout].embeddings(), SETS[layout].ids()
    weights = objective.pair_weights(*embeddings, **ids)
    close(weights, of_queries + of_candidates)
    close(objective.pair_weights(*embeddings, **ids, direction="rows"), of_queries)
    close(objective.pair_weights(*embeddings, **ids, direction="columns"), of_candidates)

    S = reference.scores(*map(reference.unit, embeddings)).detach().requires_grad_()
    close(torch.autograd.grad(from_scores(objective, S, **ids), S)[0], weights)


@over_runs
def test_from_scores(name, arguments, layout):
    batch = SETS[layout]
    S = torch.empty(batch.queries, batch.candidates, dtype=torch.float64)
    S.uniform_(-1.3, 1.3, generator=torch.Generator().manual_seed(0)).requires_grad_()  # scorers know no unit length
    given = batch.given()
    actual = from_scores(make(name, **arguments), S, **batch.ids())
    close(actual, cases.loss(name, S.detach(), **given, **arguments))
    close(torch.autograd.grad(actual, S)[0], cases.pair_weights(name, S, **given, **arguments))


WITH_MARGIN = [(name, arguments) for name, arguments in cases.CASES if name in cases.WITH_MARGIN]


@over_backends
@pytest.mark.parametrize("layout", PAIRS)
@pytest.mark.parametrize(("name", "arguments"), WITH_MARGIN, ids=[cases.label(*case) for case in WITH_MARGIN])
def test_one_margin_per_pair(name, arguments, layout, call):
    expected = expect(name, arguments, layout, "mean", with_margins=True)
    objective = make(name, **arguments)
    embeddings = PAIRS[layout].embeddings()
    given = {**PAIRS[layout].ids(), "margins": torch.tensor(MARGINS, dtype=torch.float64)}
    actual = objective(*embeddings, **given, **call)
    close(actual, expected.value)
    for one, other in zip(torch.autograd.grad(actual, embeddings), expected.gradients, strict=True):
        close(one, other)
    close(objective.pair_weights(*embeddings, **given), expected.weights[0] + expected.weights[1])

    S = reference_embeddings(layout)[1].detach().requires_grad_()
    actual = from_scores(objective, S, **given)
    close(actual, expected.value)
    close(torch.autograd.grad(actual, S)[0], expected.weights[0] + expected.weights[1])


@pytest.mark.parametrize("name", sorted({name for name, _ in cases.CASES} - set(cases.WITH_MARGIN)))
def test_margins_are_refused_where_there_are_none(name):
    with pytest.raises(UserError, match="margin"):
        make(name)(torch.eye(3), torch.eye(3), margins=torch.ones(3))


def test_single_positive_objectives_refuse_unequal_lengths():
    for name in sorted(set(names()) - set(cases.SETS)):
        with pytest.raises(UserError, match="row i must match row i"):
            make(name)(torch.eye(3), torch.eye(4)[:, :3], query_ids=torch.arange(3), candidate_ids=torch.arange(4))


@pytest.mark.parametrize("name", cases.SETS)
def test_sets_without_ids_refuse_unequal_lengths(name):
    with pytest.raises(UserError):
        make(name)(torch.eye(3), torch.eye(4)[:, :3])


@over_backends
@pytest.mark.parametrize("layout", PAIRS)
def test_learned_scale(layout, call):
    name, arguments = LEARNED
    objective = make(name, **arguments).double()
    with torch.no_grad():  # start from a float64 number, not from one rounded to float32
        objective.log_scale.fill_(torch.tensor(arguments["scale"], dtype=torch.float64).log())
    embeddings = PAIRS[layout].embeddings()
    inputs = (*embeddings, objective.log_scale)
    actual = objective(*embeddings, **PAIRS[layout].ids(), **call)

    log_scale = objective.log_scale.detach().clone().requires_grad_()
    S = reference.scores(*map(reference.unit, embeddings))
    batch = PAIRS[layout]
    # log_scale holds one number, in a vector; .sum() takes it out
    expected = cases.loss("vlc", S, **batch.given(), scale=log_scale.exp().sum())
    close(actual, expected)
    theirs = torch.autograd.grad(expected, (*embeddings, log_scale), allow_unused=True)
    for one, other in zip(torch.autograd.grad(actual, inputs), theirs, strict=True):
        close(one, torch.zeros_like(one) if other is None else other)


@pytest.mark.parametrize("layout", PAIRS)
def test_learned_scale_on_scores(layout):
    name, arguments = LEARNED
    objective = make(name, **arguments).double()
    batch = PAIRS[layout]
    S = reference_embeddings(layout)[1].detach().requires_grad_()
    actual = from_scores(objective, S, **batch.ids())
    log_scale = objective.log_scale.detach().clone().requires_grad_()
    given = {**batch.given(), "scale": log_scale.exp().sum()}
    expected = cases.loss("vlc", S, **given)
    close(actual, expected)
    theirs = torch.autograd.grad(expected, (S, log_scale), allow_unused=True, retain_graph=True)
    for one, other in zip(torch.autograd.grad(actual, (S, objective.log_scale)), theirs, strict=True):
        close(one, torch.zeros_like(one) if other is None else other)
    close(objective.pair_weights(*batch.embeddings(), **batch.ids()), theirs[0])


@over_backends
@pytest.mark.parametrize(("name", "arguments"), cases.CASES, ids=[cases.label(*case) for case in cases.CASES])
def test_normalize_false_takes_the_embeddings_as_they_are(name, arguments, call):
    queries, candidates = PAIRS["no_ids"].embeddings()
    embeddings = (0.4 * queries).detach().requires_grad_(), (0.4 * candidates).detach().requires_grad_()
    actual = make(name, **arguments, normalize=False)(*embeddings, **call)
    S = reference.scores(*embeddings)
    close(actual, cases.loss(name, S.detach(), **arguments))
    W = cases.pair_weights(name, S, **arguments)
    for one, other in zip(torch.autograd.grad(actual, embeddings), torch.autograd.grad(S, embeddings, W), strict=True):
        close(one, other)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", cases.TABLE)
def test_lower_precision_is_compared_in_float32(name, dtype, backend):
    queries, candidates = (x.detach().to(dtype).requires_grad_() for x in PAIRS["ids"].embeddings())
    # Gentle constants: at the defaults (γ = 256, τ = 0.01) float32 scores alone move the loss by more than 1e-5.
    arguments = cases.TABLE[name].gentle
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = make(name, **arguments)(queries, candidates, **PAIRS["ids"].ids(), backend=backend)
    actual.backward()
    assert actual.dtype == torch.float32
    assert queries.grad is not None
    assert queries.grad.dtype == dtype
    S = reference.scores(reference.unit(queries.detach().double()), reference.unit(candidates.detach().double()))
    expected = cases.loss(name, S, query_ids=PAIRS["ids"].query_ids, **arguments)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@over_backends
@pytest.mark.parametrize("ids", PAIRS)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ssp", {"margin": 0.25}),
        ("multi_similarity", {"epsilon": 0.25}),
        ("goal", {"triplet": "con", "pair": "con", "margin": 0.25}),
        ("goal", {"triplet": "nca", "pair": "lin_ms", "epsilon": 0.25}),
        ("goal", {"triplet": "nca", "pair": "sig_ms", "epsilon": 0.25}),
    ],
    ids=str,
)
def test_bounds_are_strict_and_ties_go_to_the_lowest_index(name, arguments, ids, call):
    """Scores that are quarters, exactly: many lie on a bound, and many are equal."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        queries = torch.randint(-1, 2, (7, 3), generator=generator).double().requires_grad_()
        candidates = (torch.randint(-1, 2, (7, 3), generator=generator).double() / 4).requires_grad_()
        actual = make(name, **arguments, normalize=False)(queries, candidates, **PAIRS[ids].ids(), **call)
        S = reference.scores(queries, candidates)
        given = {**PAIRS[ids].given(), **arguments}
        close(actual, cases.loss(name, S.detach(), **given))
        expected = torch.autograd.grad(S, (queries, candidates), cases.pair_weights(name, S, **given))
        for one, other in zip(torch.autograd.grad(actual, (queries, candidates)), expected, strict=True):
            close(one, other)
