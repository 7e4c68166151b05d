import math

import pytest

from distributed.config.tree import Optimizer
from distributed.strategies.optimizer import learning_rate_factor


def factors(steps, **settings):
    return [learning_rate_factor(Optimizer(**settings), step, steps_per_epoch=4, epochs=5) for step in steps]


def test_warm_up_rises_linearly_and_reaches_the_peak_after_its_last_step():
    assert factors(range(5), warmup_epochs=1, schedule="constant") == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_goes_from_one_to_zero_over_what_is_left():
    # 20 steps, 4 of warm-up: step 12 is half-way, step 8 a quarter.
    assert factors([4, 8, 12, 20], warmup_epochs=1) == pytest.approx([1, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0])


def test_step_divides_after_each_named_epoch():
    found = factors([7, 8, 15, 16], schedule="step", warmup_epochs=0, decay_epochs=[2, 4], decay_factor=0.1)
    assert found == pytest.approx([1, 0.1, 0.1, 0.01])


def test_no_warm_up_starts_at_the_peak():
    assert factors([0], warmup_epochs=0) == [1.0]
