"""Fused tiles against written-out formulas in float64, over sizes that cut every block edge.

In Triton's interpreter blocks are 16×16, on a GPU they are those that training uses; sizes are chosen in blocks.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from allpairs.engine import fused
from allpairs.engine.fused import instances, launch_table, launches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1), (37, 20), (3, 40), (48, 17)]
ULP = 2.0**-23


class Batch:
    """A big tile and its scores in float64."""

    def __init__(self, rows: int, columns: int, size: int, dtype: torch.dtype, *, ids: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = ids
        self.queries = normalize(torch.randn(rows, size, generator=generator), dim=1).to(DEVICE, dtype)
        self.candidates = normalize(torch.randn(columns, size, generator=generator), dim=1).to(DEVICE, dtype)
        if ids == "own":  # off the diagonal, no block has a pair of equal ids
            self.row_ids, self.column_ids = torch.arange(rows), torch.arange(columns)
        elif ids == "foreign":  # a tile far off the diagonal: nothing is masked
            self.row_ids, self.column_ids = torch.arange(rows) + 10**12, torch.arange(columns)
        elif ids == "same":  # one instance: no negative anywhere
            self.row_ids, self.column_ids = torch.full((rows,), -7), torch.full((columns,), -7)
        else:
            self.row_ids = torch.randint(-5, 5, (rows,), generator=generator) << 32
            self.column_ids = torch.randint(-5, 5, (columns,), generator=generator) << 32
            self.row_ids[0] = 5 << 32 | 1  # differs from any other in its low half too
        self.row_ids, self.column_ids = self.row_ids.to(DEVICE), self.column_ids.to(DEVICE)

    @property
    def operands(self) -> launches.Operands:
        rows, columns = self.is_negative.shape
        if self.ids == "own":  # in the middle of a batch, and not at the beginning of a run
            both = instances.by_index(max(rows, columns) + 21, self.queries.device)
            return launches.Operands(self.queries, self.candidates, both, both, 21, 21, masked=True)
        if self.ids == "foreign":
            both = instances.by_index(rows + columns, self.queries.device)
            return launches.Operands(self.queries, self.candidates, both, both, columns, 0, masked=False)
        of_both = instances.by_ids(self.row_ids, self.column_ids)
        return launches.Operands(self.queries, self.candidates, *of_both, 0, 0, masked=True)

    @property
    def is_negative(self) -> Tensor:
        return self.row_ids[:, None] != self.column_ids

    @property
    def scores(self) -> Tensor:
        return self.queries.double() @ self.candidates.double().T

    def biases(self, scale: float) -> tuple[Tensor, Tensor]:
        """Like a positive's scaled score: some anchors have exponents above 0, some only below."""
        generator = torch.Generator().manual_seed(9)
        rows, columns = self.is_negative.shape
        return tuple((scale * torch.rand(n, generator=generator)).to(DEVICE) for n in (rows, columns))


def as_number(value: float) -> Tensor:
    return torch.full((1,), value, device=DEVICE)


def in_blocks(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Sizes written for blocks of 16, for the blocks that are launched."""
    launch = launches.launch_for(torch.empty(0, dtype=dtype, device=DEVICE), "soft_excess")
    return rows * launch.rows // 16, columns * launch.columns // 16


def exponent_error(scale: float, bias: Tensor) -> float:
    """Scores of unit vectors are good to two units in the last place of 1, biases and the difference to half of one."""
    return ULP * (2 * scale + float(bias.abs().max()))


def rounding_of(dtype: torch.dtype) -> float:
    """Half a unit in the last place; a whole one for bfloat16 in Triton's interpreter, which truncates to it."""
    truncates = dtype == torch.bfloat16 and DEVICE == "cpu"
    return torch.finfo(dtype).eps / (1 if truncates else 2)


def smallest_of(dtype: torch.dtype) -> float:
    """Return what may be lost near 0: float16 has few digits there, a GPU flushes what float32 holds only roughly."""
    finfo = torch.finfo(dtype)
    return max(finfo.smallest_normal * finfo.eps, 4 * torch.finfo(torch.float32).smallest_normal)


def check_excess(
    found: tuple[Tensor, Tensor], scores: Tensor, is_negative: Tensor, *, scale: float, bias: Tensor
) -> None:
    peak, total = found
    exponents = (scale * scores - bias.double()[:, None]).masked_fill(~is_negative, -torch.inf)
    expected_peak = exponents.amax(1).clamp(min=0)
    expected_total = (exponents - expected_peak[:, None]).exp().sum(1)
    error = exponent_error(scale, bias)
    assert peak.dtype == total.dtype == torch.float32
    torch.testing.assert_close(peak.double(), expected_peak, rtol=0, atol=error)
    # A total below 1e-30 is lost beside the 1 that it is added to.
    torch.testing.assert_close(total.double(), expected_total, rtol=2 * error + 8 * ULP, atol=1e-30)


def check_soft_excess(batch: Batch, scale: float) -> None:
    row_bias, column_bias = batch.biases(scale)
    found = launches.soft_excess(batch.operands, scale=as_number(scale), row_bias_R=row_bias, column_bias_C=column_bias)
    row_peak, row_total, column_peak, column_total = found
    check_excess((row_peak, row_total), batch.scores, batch.is_negative, scale=scale, bias=row_bias)
    of_columns = {"scale": scale, "bias": column_bias}
    check_excess((column_peak, column_total), batch.scores.T, batch.is_negative.T, **of_columns)


@pytest.mark.parametrize("counts", [(1, 1), (70, 41), (200, 200)])
def test_items_of_one_id_have_one_number_the_index_of_their_first(counts):
    generator = torch.Generator().manual_seed(0)
    of_queries, of_candidates = (torch.randint(-9, 9, (count,), generator=generator) << 40 for count in counts)
    queries, candidates = instances.by_ids(of_queries, of_candidates)
    first = {value: index for index, value in reversed([*enumerate([*of_queries.tolist(), *of_candidates.tolist()])])}
    for side, ids in ((queries, of_queries), (candidates, of_candidates)):
        assert side.numbers.tolist() == [first[value] for value in ids.tolist()]
        assert side.numbers.data_ptr() % 16 == 0
        for run, part in enumerate(side.numbers.split(16)):
            assert side.ranges[run].tolist() == [part.min(), part.max()]
        lowest, highest = side.ranges[run + 1 :].T
        assert (lowest > highest).all()  # no block overlaps what lies beyond the last item
        assert len(lowest) >= 256 // 16


def test_a_launch_in_the_tables_place_is_for_the_context_alone():
    table = launch_table.TABLE["hardest"]
    other = launch_table.Launch(64, 128, 64, warps=4, stages=4)
    with launch_table.launching(hardest=other):
        assert launch_table.launch_on(9, torch.bfloat16, "hardest") == other
        assert launch_table.launch_on(9, torch.bfloat16, "soft_excess") == launch_table.TABLE["soft_excess"]
    assert launch_table.launch_on(9, torch.bfloat16, "hardest") == table


def test_the_kernels_are_usable_where_these_tests_run():
    assert all(fused.usable(torch.empty(1, 16, dtype=dtype, device=DEVICE)) for dtype in DTYPES)
    assert not fused.usable(torch.empty(1, 16, dtype=torch.float64, device=DEVICE))
    assert not fused.usable(torch.empty(1, 16, device="meta"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("ids", "scale"), [("own", 20.0), ("shared", 20.0), ("own", 1000.0)])
def test_soft_excess_at_ragged_sizes(dtype, ids, scale):
    for number, (rows, columns) in enumerate(SIZES):
        check_soft_excess(Batch(*in_blocks(rows, columns, dtype), (16, 48, 80)[number % 3], dtype, ids=ids), scale)


@pytest.mark.parametrize("octaves", [10.0, 95.0, 105.0, 1200.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_excess_of_rows_and_columns_that_peak_far_apart(dtype, octaves):
    """Below 100 octaves one exponential serves both directions, above two are taken: each row must keep its digits."""
    batch = Batch(*in_blocks(40, 40, dtype), 32, dtype, ids="foreign")
    # Halving is exact in every type; only every other row and column keeps its length.
    batch.queries[::2] *= 0.5
    batch.candidates[::3] *= 0.25
    spread = batch.scores.amax(1).amax() - torch.minimum(batch.scores.amax(1).amin(), batch.scores.amax(0).amin())
    check_soft_excess(batch, octaves * math.log(2) / float(spread))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_anchors_without_negatives_find_nothing(dtype):
    batch = Batch(*in_blocks(20, 40, dtype), 16, dtype, ids="same")
    batch.row_ids[3] = 8  # the one row with negatives is every column's only one
    row_bias, column_bias = batch.biases(50.0)
    row_peak, row_total, _, _ = launches.soft_excess(
        batch.operands, scale=as_number(50.0), row_bias_R=row_bias, column_bias_C=column_bias
    )
    others = torch.arange(len(row_peak), device=DEVICE) != 3
    assert (row_peak[others] == 0).all()
    assert (row_total[others] == 0).all()
    check_soft_excess(batch, 50.0)
    row_value, row_column, column_value, column_row = launches.hardest(batch.operands)
    assert (row_value[others] == -torch.inf).all()
    assert (row_column[others] == 0).all()
    assert (column_row == 3).all()
    torch.testing.assert_close(column_value.double(), batch.scores[3], rtol=0, atol=2 * ULP)
    out = torch.full(batch.is_negative.shape, torch.nan, device=DEVICE)
    launches.soft_weights(
        batch.operands, scale=as_number(50.0), row_shift_R=row_bias, column_shift_C=column_bias, out=out
    )
    assert (out[others] == 0).all()
    assert (out[3] > 0).all()


def check_hardest(value: Tensor, index: Tensor, scores: Tensor, is_negative: Tensor) -> None:
    masked = scores.masked_fill(~is_negative, -torch.inf)
    expected = masked.amax(1)
    places = torch.arange(masked.shape[1], device=DEVICE).expand_as(masked)
    lowest = places.masked_fill(masked != expected[:, None], masked.shape[1]).amin(1)
    assert value.dtype == torch.float32
    assert index.dtype == torch.int64
    assert torch.equal(value.double(), expected)
    assert torch.equal(index, lowest.masked_fill(expected == -torch.inf, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ids", ["own", "shared"])
def test_hardest_takes_the_lowest_index_of_exact_ties(dtype, ids):
    """Whole numbers have exact products in every type, and few values: most maxima are held by several columns."""
    for rows, columns in SIZES:
        batch = Batch(*in_blocks(rows, columns, dtype), 48, dtype, ids=ids)
        batch.queries = (batch.queries.float() * 7).round().clamp(-2, 2).to(dtype)
        batch.candidates = (batch.candidates.float() * 7).round().clamp(-2, 2).to(dtype)
        batch.candidates[len(batch.candidates) // 2 :] = batch.candidates[: (len(batch.candidates) + 1) // 2].clone()
        row_value, row_column, column_value, column_row = launches.hardest(batch.operands)
        check_hardest(row_value, row_column, batch.scores, batch.is_negative)
        check_hardest(column_value, column_row, batch.scores.T, batch.is_negative.T)


def test_hardest_passes_over_a_nan_and_keeps_its_indices_in_range():
    batch = Batch(*in_blocks(20, 40, torch.float32), 16, torch.float32, ids="foreign")
    batch.queries[5] = torch.nan
    row_value, row_column, column_value, column_row = launches.hardest(batch.operands)
    assert row_value[5] == -torch.inf
    assert row_column[5] == 0
    batch.queries[5] = 0
    expected = batch.scores
    expected[5] = -torch.inf
    assert torch.equal(column_row, expected.argmax(0))
    torch.testing.assert_close(column_value.double(), expected.amax(0), rtol=0, atol=2 * ULP)


@pytest.mark.parametrize("long", ["rows", "columns"])
def test_more_blocks_than_a_group_and_a_merge_hold(long):
    sizes = (545, 5) if long == "rows" else (5, 545)
    batch = Batch(*in_blocks(*sizes, torch.float32), 16, torch.float32, ids="own")
    check_soft_excess(batch, 60.0)
    row_value, row_column, column_value, column_row = launches.hardest(batch.operands)
    masked = batch.scores.masked_fill(~batch.is_negative, -torch.inf)
    assert torch.equal(row_column, masked.argmax(1))
    assert torch.equal(column_row, masked.argmax(0))
    torch.testing.assert_close(row_value.double(), masked.amax(1), rtol=0, atol=2 * ULP)
    torch.testing.assert_close(column_value.double(), masked.amax(0), rtol=0, atol=2 * ULP)


@pytest.mark.parametrize("scale", [20.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ids", ["own", "shared"])
def test_soft_weights_at_ragged_sizes(dtype, ids, scale):
    for number, (rows, columns) in enumerate(SIZES):
        batch = Batch(*in_blocks(rows, columns, dtype), (16, 48, 80)[number % 3], dtype, ids=ids)
        scores, is_negative = batch.scores, batch.is_negative
        # As in training: no exponent is above 0, since the anchor's own log-sum-exp is subtracted.
        row_shift = (scale * scores).logsumexp(1).float()
        column_shift = (scale * scores).logsumexp(0).float()
        of_rows = (scale * scores - row_shift.double()[:, None]).exp()
        of_columns = (scale * scores - column_shift.double()).exp()
        expected = (of_rows + of_columns).masked_fill(~is_negative, 0)
        buffer = torch.full((scores.shape[0], scores.shape[1] + 3), torch.nan, dtype=torch.float32, device=DEVICE)
        for out_dtype in {torch.float32, dtype}:
            wide = buffer.to(out_dtype)
            out = wide[:, : scores.shape[1]]
            launches.soft_weights(
                batch.operands, scale=as_number(scale), row_shift_R=row_shift, column_shift_C=column_shift, out=out
            )
            assert wide[:, scores.shape[1] :].isnan().all()  # nothing is written outside
            error = 2 * exponent_error(scale, torch.cat([row_shift, column_shift])) + 8 * ULP
            close = {"rtol": error + rounding_of(out_dtype), "atol": smallest_of(out_dtype)}
            torch.testing.assert_close(out.double(), expected, **close)
            assert (out[~is_negative] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_shift_of_infinity_leaves_its_direction_out(dtype):
    batch = Batch(*in_blocks(20, 40, dtype), 16, dtype, ids="foreign")
    row_shift = torch.full((len(batch.queries),), torch.inf, device=DEVICE)
    column_shift = torch.full((len(batch.candidates),), 30.0, device=DEVICE)
    out = torch.empty(batch.is_negative.shape, device=DEVICE)
    launches.soft_weights(
        batch.operands, scale=as_number(30.0), row_shift_R=row_shift, column_shift_C=column_shift, out=out
    )
    expected = (30 * batch.scores - 30).exp()
    torch.testing.assert_close(out.double(), expected, rtol=2 * exponent_error(30.0, column_shift) + 8 * ULP, atol=0)


def test_the_same_input_gives_the_same_bits():
    batch = Batch(*in_blocks(70, 37, torch.bfloat16), 48, torch.bfloat16, ids="shared")
    row_bias, column_bias = batch.biases(40.0)
    first, second = (
        launches.soft_excess(batch.operands, scale=as_number(40.0), row_bias_R=row_bias, column_bias_C=column_bias)
        for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ids", ["own", "shared", "same"])
def test_sigmoid_sums_and_weights_at_ragged_sizes(dtype, ids):
    for (rows, columns), (scale, bias) in zip(
        SIZES, [(10.0, -10.0), (80.0, -30.0), (1.0, 0.5), (300.0, -20.0)], strict=True
    ):
        batch = Batch(*in_blocks(rows, columns, dtype), 48, dtype, ids=ids)
        y = torch.where(batch.is_negative, 1, -1) * (scale * batch.scores + bias)
        cost, slope = (
            torch.nn.functional.softplus(y, threshold=500),
            torch.where(batch.is_negative, 1, -1) * y.sigmoid(),
        )
        found = launches.sigmoid_sums(batch.operands, scale=as_number(scale), bias=as_number(bias))
        error = 2 * exponent_error(scale, torch.tensor(bias)) + 16 * ULP
        sums = [cost.sum(1), slope.abs().sum(1), cost.sum(0), slope.abs().sum(0)]
        for actual, expected, size in zip(
            found, (cost.sum(1), slope.sum(1), cost.sum(0), slope.sum(0)), sums, strict=True
        ):
            assert actual.dtype == torch.float32
            # Slopes of both signs cancel: the error is that of their sizes.
            assert ((actual.double() - expected).abs() <= error * size + 1e-30).all()
        for out_dtype in {torch.float32, dtype}:
            wide = torch.full((len(y), y.shape[1] + 3), torch.nan, device=DEVICE).to(out_dtype)
            out = wide[:, : y.shape[1]]
            launches.sigmoid_weights(
                batch.operands, scale=as_number(scale), bias=as_number(bias), factor=as_number(0.5), out=out
            )
            assert wide[:, y.shape[1] :].isnan().all()  # nothing is written outside
            close = {"rtol": error + rounding_of(out_dtype), "atol": smallest_of(out_dtype)}
            torch.testing.assert_close(out.double(), slope / 2, **close)
