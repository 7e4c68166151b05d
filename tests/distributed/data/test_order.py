import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allpairs.errors import UserError
from distributed.data.order import EpochOrder, batch_sizes, rank_slice


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    window=st.integers(1, 60),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_once_and_any_cut_of_the_order_agrees(sizes, window, seed, epoch):
    total = sum(sizes)
    whole = EpochOrder(sizes, seed=seed, epoch=epoch, window=window).rows(0, total)
    assert sorted(whole.tolist()) == list(range(total))
    order = EpochOrder(sizes, seed=seed, epoch=epoch, window=window)
    middle = total // 3
    assert np.array_equal(np.concatenate([order.rows(0, middle), order.rows(middle, total)]), whole)


def test_window_one_reads_whole_shards_in_a_permuted_order():
    rows = EpochOrder([3, 3, 3, 3], seed=1, epoch=0, window=1).rows(0, 12).reshape(4, 3)
    assert (np.diff(rows, axis=1) == 1).all()
    assert set(rows[:, 0].tolist()) == {0, 3, 6, 9}


def test_a_window_stays_within_the_shards_it_covers():
    # Windows of two whole shards: each holds exactly two shards, mixed.
    rows = EpochOrder([5] * 8, seed=0, epoch=0, window=10).rows(0, 40).reshape(4, 10)
    assert all(len({row // 5 for row in window}) == 2 for window in rows.tolist())
    assert any(sorted(window) != window for window in rows.tolist())


def test_epochs_and_seeds_have_their_own_order():
    def first(seed: int, epoch: int) -> list[int]:
        return EpochOrder([50, 50], seed=seed, epoch=epoch, window=100).rows(0, 100).tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


@pytest.mark.parametrize(
    ("remaining", "batch", "sizes"),
    [
        (96, 32, [32, 32, 32]),
        (106, 32, [32, 32, 32, 10]),  # the tail is a batch of its own
        (99, 32, [32, 32, 35]),  # under an eighth of a batch: joins the batch before it
        (20, 32, [20]),
    ],
)
def test_tails(remaining, batch, sizes):
    assert batch_sizes(remaining, batch, world=2, min_rows=2) == sizes


def test_a_tail_that_would_starve_a_rank_joins_the_batch_before_it():
    assert batch_sizes(23, 16, world=4, min_rows=2) == [23]
    assert batch_sizes(24, 16, world=4, min_rows=2) == [16, 8]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_batches_do_not_depend_on_the_world_size(world):
    for remaining in range(64, 200):
        assert batch_sizes(remaining, 64, world=world, min_rows=2) == batch_sizes(remaining, 64, world=1, min_rows=2)


def test_too_many_ranks_are_refused():
    with pytest.raises(UserError, match="16 samples in batches of 6 cannot give each of 4 ranks 2 rows"):
        batch_sizes(16, 6, world=4, min_rows=2)


@given(rows=st.integers(0, 300), world=st.integers(1, 9))
def test_rank_slices_are_contiguous_even_and_complete(rows, world):
    slices = [rank_slice(rows, rank=rank, world=world) for rank in range(world)]
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(rows))
    lengths = [part.stop - part.start for part in slices]
    assert max(lengths) - min(lengths) <= 1
