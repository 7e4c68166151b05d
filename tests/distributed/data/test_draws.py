import numpy as np

from distributed.data.draws import Purpose, _mix, choose, draw, draw_unit, permutation


def test_mix_gives_the_published_splitmix64_sequence():
    # First outputs of the reference generator for seed 1234567 (Vigna's splitmix64.c).
    state = np.array([1234567], dtype=np.uint64)
    outputs = [int(_mix(state + np.uint64(i) * np.array([0x9E3779B97F4A7C15], np.uint64))[0]) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_differ_by_every_argument():
    ids = np.arange(64)
    variants = [
        draw(0, 0, Purpose.ROWS, ids),
        draw(1, 0, Purpose.ROWS, ids),
        draw(0, 1, Purpose.ROWS, ids),
        draw(0, 0, Purpose.FLIP, ids),
    ]
    assert len({int(value) for values in variants for value in values}) == 4 * 64


def test_unit_draws_are_uniform():
    values = draw_unit(3, 5, Purpose.CROP_X, np.arange(20_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000 * 0.9)  # five standard deviations of a binomial count


def test_permutation_is_one():
    assert sorted(permutation(9, 2, Purpose.SHARDS, np.arange(100)).tolist()) == list(range(100))


def test_choose_is_distinct_then_repeats_in_turn():
    five = choose(0, 0, Purpose.CAPTIONS, 7, available=5, count=5)
    assert sorted(five) == [0, 1, 2, 3, 4]
    assert choose(0, 0, Purpose.CAPTIONS, 7, available=5, count=2) == five[:2]
    three = choose(0, 0, Purpose.CAPTIONS, 7, available=2, count=3)
    assert three[2] == three[0] != three[1]


def test_choose_visits_all_captions_over_epochs():
    drawn = {choose(0, epoch, Purpose.CAPTIONS, 7, available=5, count=1)[0] for epoch in range(60)}
    assert drawn == {0, 1, 2, 3, 4}
