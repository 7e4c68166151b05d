"""A statistic says how it merges when its class is made, and keeps its type from pass to pass."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from allpairs.engine.contract import Anchors, Tile
from allpairs.engine.statistics import Highest, RowStatistic, Summed
from allpairs.objectives import make
from tests.allpairs.objectives import cases


def test_a_field_without_a_merge_rule_fails_at_class_creation():
    with pytest.raises(TypeError, match=r"Forgotten\.count does not say how it merges"):

        @dataclass(frozen=True)
        class Forgotten(RowStatistic):
            total: Summed
            count: Tensor


def test_merge_without_reduce_fails_at_class_creation():
    with pytest.raises(TypeError, match="merge and reduce belong together"):

        @dataclass(frozen=True)
        class Half(RowStatistic):
            total: Tensor

            def merge(self, later):
                return later


def test_declared_fields_merge_one_by_one_and_nested():
    @dataclass(frozen=True)
    class Inner(RowStatistic):
        highest: Highest

    @dataclass(frozen=True)
    class Outer(RowStatistic):
        total: Summed
        inner: Inner

    first = Outer(torch.tensor([1.0, 2.0]), Inner(torch.tensor([5.0, 0.0])))
    merged = first.merge(Outer(torch.tensor([10.0, 20.0]), Inner(torch.tensor([3.0, 4.0]))))
    assert merged.total.tolist() == [11.0, 22.0]
    assert merged.inner.highest.tolist() == [5.0, 4.0]
    assert Outer.join([merged.rows(slice(1, 2)), merged.rows(slice(0, 1))]).inner.highest.tolist() == [4.0, 5.0]


@pytest.mark.parametrize(("name", "arguments"), cases.CASES, ids=[cases.label(*case) for case in cases.CASES])
def test_every_statistic_keeps_its_type_from_pass_to_pass(name, arguments):
    objective = make(name, **arguments)
    scores = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    own = torch.eye(3, dtype=torch.bool)
    positive = scores.diagonal() if objective.own_positive else None
    lowest = None if positive is None else positive.amin()
    anchors = Anchors(positive, lowest_positive=lowest, slots=torch.arange(3)[:, None])
    tile = Tile(anchors, scores, is_positive=own, is_negative=~own, column_positive=positive)
    kinds, known = [], None
    for _ in range(objective.passes):
        known = objective.statistic(tile, known)
        kinds.append(type(known))
    assert len(set(kinds)) == 1
