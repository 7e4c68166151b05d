"""vlc beside float64: value and gradients of whole batches, and of sampled rows where a whole one would take too long.

The reference is written out: log-sum-exps over rows and columns of S = 100·Q·Cᵀ, then W·C and Wᵀ·Q, a strip at a time.

Shapes: B pairs, D embedding, R rows of a strip.
"""

from typing import Any

import torch
from torch import Tensor

from allpairs.engine.products import product
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.losses import SCALE, ours, vectors

SECTION = "parity with float64"
STRIP = 1024
SAMPLED = 64


def run(bench: Bench) -> None:
    """Compare whole batches."""
    for batch in bench.sizes.parity:
        bench.row(SECTION, f"vlc, {batch:,} pairs", 5 + 25 * (batch / 65536) ** 2, lambda b=batch: whole(bench, b))


def run_sampled(bench: Bench) -> None:
    """Compare sampled rows of the largest batch."""
    batch = bench.sizes.largest
    bench.row(SECTION, f"vlc, {batch:,} pairs, {SAMPLED} rows", 50, lambda: sampled(bench, batch))


def whole(bench: Bench, batch: int) -> dict[str, Any]:
    """Return the errors of the value and of both gradients, relative to their size."""
    value, actual, sides = _ours(bench, batch)
    queries_BD, candidates_BD = (side.detach().double() for side in sides)
    rows_B, columns_B = log_sums(queries_BD, candidates_BD)
    expected = [torch.zeros_like(queries_BD), torch.zeros_like(candidates_BD)]
    for start in range(0, batch, STRIP):
        strip = slice(start, start + STRIP)
        weights_RB = weights(queries_BD[strip], candidates_BD, columns_B, start)
        expected[0][strip] = weights_RB @ candidates_BD
        expected[1].addmm_(weights_RB.T, queries_BD[strip])
    found = {"value": abs(value / float(_value(queries_BD, candidates_BD, rows_B, columns_B)) - 1)}
    for name, gradient, wanted in zip(("queries", "candidates"), actual, expected, strict=True):
        found[name] = float((gradient.double() - wanted).norm() / wanted.norm())
    return found


def sampled(bench: Bench, batch: int) -> dict[str, Any]:
    """Return the error of the value and of some queries' gradients; sums over all pairs are torch's, in float32."""
    value, actual, sides = _ours(bench, batch)
    queries_BD, candidates_BD = (side.detach() for side in sides)
    rows_B, columns_B = log_sums(queries_BD, candidates_BD)
    wide_BD = candidates_BD.double()
    some = torch.arange(0, batch, -(-batch // SAMPLED), device=bench.device)
    expected_RD = torch.cat(
        [weights(queries_BD[row : row + 1].double(), wide_BD, columns_B, row) @ wide_BD for row in some.tolist()]
    )
    wanted = float(_value(queries_BD, candidates_BD, rows_B, columns_B))
    error = float((actual[0][some].double() - expected_RD).norm() / expected_RD.norm())
    return {"value": abs(value / wanted - 1), "queries": error}


def _ours(bench: Bench, batch: int) -> tuple[float, tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    sides = vectors(batch, bench.sizes.dim, bench.device, bench.dtype)
    loss = ours("vlc", scale=SCALE, normalize=False)(*sides)
    return loss.item(), torch.autograd.grad(loss, sides), sides


def log_sums(queries_BD: Tensor, candidates_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return log Σ e^S of every row and of every column [B]."""
    rows: list[Tensor] = []
    columns_B: Tensor | None = None
    for start in range(0, len(queries_BD), STRIP):
        scores_RB = product(queries_BD[start : start + STRIP], candidates_BD.T).mul_(SCALE)
        rows.append(scores_RB.logsumexp(dim=1))
        of_strip_B = scores_RB.logsumexp(dim=0)
        columns_B = of_strip_B if columns_B is None else torch.logaddexp(columns_B, of_strip_B)
    assert columns_B is not None
    return torch.cat(rows), columns_B


def weights(queries_RD: Tensor, candidates_BD: Tensor, columns_B: Tensor, first: int) -> Tensor:
    """Return ∂L/∂(q·c) [R, B] of the queries from `first` on."""
    scores_RB = (queries_RD @ candidates_BD.T).mul_(SCALE)
    rows_R1 = scores_RB.logsumexp(dim=1, keepdim=True)
    weights_RB = (scores_RB - rows_R1).exp_().add_(scores_RB.sub_(columns_B).exp_())
    weights_RB[:, first : first + len(weights_RB)].diagonal().sub_(2)
    return weights_RB.mul_(SCALE / len(candidates_BD))


def _value(queries_BD: Tensor, candidates_BD: Tensor, rows_B: Tensor, columns_B: Tensor) -> Tensor:
    positives = sum(
        (queries_BD[start : start + STRIP].double() * candidates_BD[start : start + STRIP]).sum()
        for start in range(0, len(queries_BD), STRIP)
    )
    return (rows_B.double().sum() + columns_B.double().sum() - 2 * SCALE * positives) / len(queries_BD)
