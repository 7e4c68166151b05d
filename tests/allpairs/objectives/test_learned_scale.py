"""The learned scale of `vlc`, log-parametrised and never above 100, and `siglip`'s, with its bias."""

import math

import pytest
import torch

from allpairs.errors import UserError
from allpairs.objectives import make, names


def pairs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(6, 4, generator=generator)
    return queries, queries + 0.1 * torch.randn(6, 4, generator=generator)


def test_only_a_learned_scale_is_a_parameter():
    assert list(make("vlc", scale=20.0).parameters()) == []
    objective = make("vlc", scale=20.0, learn_scale=True)
    assert [name for name, _ in objective.named_parameters()] == ["log_scale"]
    assert objective.scale.item() == pytest.approx(20.0)
    assert list(objective.state_dict()) == ["log_scale"]


def test_same_value_as_the_fixed_scale():
    fixed, learned = make("vlc", scale=20.0), make("vlc", scale=20.0, learn_scale=True)
    torch.testing.assert_close(learned(*pairs()), fixed(*pairs()))


def test_a_step_beyond_one_hundred_is_taken_back_and_comes_back():
    objective = make("vlc", scale=100.0, learn_scale=True)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
    with torch.no_grad():
        objective.log_scale.fill_(math.log(5000))  # where an optimiser's step may end
    objective.constrain()
    assert objective.learned() == {"scale": pytest.approx(100.0)}
    torch.testing.assert_close(objective(*pairs()), make("vlc", scale=100.0)(*pairs()), rtol=1e-5, atol=1e-7)

    # Hard pairs, each nearest to a wrong candidate, want a smaller scale: the gradient must not be stuck at the bound.
    queries, candidates = pairs()
    objective(queries, candidates.roll(1, dims=0)).backward()
    assert objective.log_scale.grad.item() > 0
    optimizer.step()
    objective.constrain()
    assert objective.scale.item() < 100


def test_a_call_changes_no_weight():
    """The bound is kept after the optimiser's step, not in a getter: looking at a scale leaves it as it is."""
    objective = make("vlc", scale=100.0, learn_scale=True)
    with torch.no_grad():
        objective.log_scale.fill_(5.0)
    (objective(*pairs(0)) + objective(*pairs(1))).backward()
    assert objective.log_scale.item() == 5.0
    assert objective.log_scale.grad.isfinite().all()


def test_nothing_is_learned_without_learn_scale():
    for name in names():
        objective = make(name)
        objective.constrain()
        assert objective.learned() == {}


@pytest.mark.parametrize("name", ["vlc", "siglip"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_what_is_learned_stays_precise_in_a_module_of_half_precision(name, half):
    objective = make(name, scale=20.0, learn_scale=True)
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "objective": objective}).to(half)
    assert model["encoder"].weight.dtype == half
    assert {parameter.dtype for parameter in objective.parameters()} == {torch.float32}
    torch.testing.assert_close(objective(*pairs()), make(name, scale=20.0)(*pairs()))
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
    before = objective.learned()
    for _ in range(3):
        optimizer.zero_grad()
        objective(*pairs()).backward()
        optimizer.step()
    assert all(abs(objective.learned()[key] - value) > 1e-6 for key, value in before.items())
    assert objective.double().log_scale.dtype == torch.float64


def test_a_scale_that_is_in_pieces_is_refused():
    objective = make("vlc", learn_scale=True)
    objective.log_scale.data = torch.empty(0)  # as ZeRO-3 leaves it
    with pytest.raises(
        UserError,
        match=r"stage 3 has taken the learned scale apart; accepted: its stage3_param_persist.* ZeRO-1 and 2, FSDP2",
    ):
        objective.constrain()


def test_siglips_bias_is_learned_with_its_scale_and_held_within_one_hundred():
    assert list(make("siglip").parameters()) == []
    objective = make("siglip", learn_scale=True)
    assert objective.learned() == {"scale": pytest.approx(10.0), "bias": -10.0}
    torch.testing.assert_close(objective(*pairs()), make("siglip")(*pairs()))
    with torch.no_grad():
        objective.log_scale.fill_(9.0)
        objective.bias.fill_(-300.0)
    objective.constrain()
    assert objective.learned() == {"scale": pytest.approx(100.0), "bias": -100.0}


@pytest.mark.parametrize(("name", "learned"), [("vlc", {"scale": 20.0}), ("siglip", {"scale": 20.0, "bias": -3.0})])
def test_what_was_made_on_the_device_meta_starts_from_its_arguments(name, learned):
    with torch.device("meta"):
        objective = make(name, **learned, learn_scale=True)
    objective = objective.to_empty(device="cpu")
    for parameter in objective.parameters():
        torch.nn.init.constant_(parameter, 77.0)  # whatever the memory held
    objective.reset_parameters()
    assert objective.learned() == pytest.approx(learned)
    make(name).reset_parameters()
