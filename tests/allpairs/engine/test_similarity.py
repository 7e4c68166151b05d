"""The mean positive and hardest-negative similarity of one process's pairs."""

import math

import pytest
import torch

from allpairs.engine import global_value, similarity_statistics
from allpairs.errors import UserError


def circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_angles_by_hand():
    # Queries at 0°, 90°, candidates at 60°, 90°. Rows: cos 60 | 0 and cos 30 | 1. Positives cos 60 and 1.
    # Hardest negatives: rows 0 and cos 30; columns cos 30 and 0.
    found = similarity_statistics(circle(0, 90), 3 * circle(60, 90))
    assert found.positive == pytest.approx((0.5 + 1) / 2)
    assert found.hardest_negative == pytest.approx(2 * math.cos(math.radians(30)) / 4)


def test_same_instance_is_no_negative_and_anchors_without_any_are_left_out():
    ids = torch.tensor([3, 3])
    assert math.isnan(similarity_statistics(circle(0, 90), circle(60, 90), query_ids=ids).hardest_negative)
    # Pairs 0 and 1 are one image. Everyone's hardest is across to pair 2 or back: all at 0°, pair 2 at 60°.
    found = similarity_statistics(circle(0, 0, 60), circle(0, 0, 60), candidate_ids=torch.tensor([3, 3, 4]))
    assert found == pytest.approx((1.0, 0.5))
    # The same of pairs whose captions say the same.
    alike = similarity_statistics(circle(0, 0, 60), circle(0, 0, 60), text_ids=torch.tensor([3, 3, 4]))
    assert alike == found


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_blocks_make_no_difference(block):
    generator = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64)
    ids = torch.tensor([0, 1, 2, 0, 1, 5, 6, 7, 8, 0])
    S = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(candidates).T
    hardest = [max(S[i, j].item() for j in range(10) if ids[j] != ids[i]) for i in range(10)]
    hardest += [max(S[j, i].item() for j in range(10) if ids[j] != ids[i]) for i in range(10)]
    found = similarity_statistics(queries.requires_grad_(), candidates, query_ids=ids, block=block)
    assert found == pytest.approx((S.diagonal().mean().item(), sum(hardest) / 20), rel=1e-13)


def test_normalize_false_and_half_precision():
    queries = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    assert similarity_statistics(queries, queries, normalize=False) == (2.5, 0.0)


def test_refuses_what_the_objectives_refuse():
    with pytest.raises(UserError, match="row i must match row i"):
        similarity_statistics(torch.eye(3), torch.eye(3)[:2])


def test_global_value_of_one_process_is_its_loss():
    loss = torch.tensor(1.5, requires_grad=True) * 2
    value = global_value(loss)
    assert value == 3
    assert not value.requires_grad
    with pytest.raises(UserError, match=r"^loss: one number is accepted, not \[2\]$"):
        global_value(torch.ones(2))
