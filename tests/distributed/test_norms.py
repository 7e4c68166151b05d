"""Norms of weights and updates against written-out ones."""

import pytest
import torch
from torch import nn

from distributed.norms import StepNorms
from distributed.world import World


def test_norms_are_of_the_trainable_weights_and_their_change():
    module = nn.ModuleList([nn.Linear(2, 1), nn.Linear(1, 1)])
    module[1].requires_grad_(False)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 2.0]]))
        module[0].bias.copy_(torch.tensor([7.0]))
    norms = StepNorms(module)
    with torch.no_grad():
        module[0].weight += torch.tensor([[3.0, 0.0]])
        module[0].bias -= 4.0
        module[1].weight += 100.0
    # Now (4, 2, 3), moved by (3, 0, -4).
    measured = norms.measure(World.join(torch.device("cpu")))
    assert measured == pytest.approx({"train/parameter_norm": 29**0.5, "train/update_norm": 5.0}, rel=1e-6)
