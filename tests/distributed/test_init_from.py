"""``model.init_from``: a second run starts from the weights of a first, the two-step recipe of VSE++."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from allpairs.errors import UserError
from distributed.config import Config
from distributed.launch import set_up
from distributed.loop import Training
from distributed.world import Stopped, World
from tests.distributed.test_loop import CPU, assert_same_state, train

RESNET = {
    "kind": "transformers",
    "name": "resnet",
    "pretrained": False,
    "config": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}


@pytest.fixture
def two_steps(tiny_config):
    """A run with a frozen backbone, and the configuration that fine-tunes it."""

    def model(**more):
        text = {"kind": "gru", "embedding": 16}
        return {"dim": 16, "image": RESNET | {"freeze": "init_from" not in more}, "text": text} | more

    first, _, _ = train(tiny_config("frozen", model=model(), train={"epochs": 2}))
    return first, lambda folder, name="tuned", **rest: tiny_config(name, model=model(init_from=str(folder)), **rest)


def start(config):
    set_up(config, resume=False)
    return Training(config, World.join(CPU), lambda _: None)


@pytest.mark.parametrize("part", [".", "checkpoints/best"])
def test_the_second_run_starts_from_the_weights_words_and_scale_of_the_first(two_steps, part):
    first, config = two_steps
    training = start(config(first.root / part))
    best = first.checkpoints / "best"
    for name, tensor in load_file(best / "model.safetensors").items():
        assert torch.equal(training.encoder.state_dict()[name], tensor), name
    scale = load_file(best / "objective.safetensors")["log_scale"]
    assert torch.equal(training.strategy.step.objective.log_scale.detach(), scale)
    assert (training.run_dir.vocabulary).read_text() == (best / "vocabulary.json").read_text()
    assert training.progress.step == 0
    assert all(parameter.requires_grad for parameter in training.encoder.parameters())


def test_a_scale_that_is_given_is_taken(two_steps):
    first, config = two_steps
    training = start(config(first.root, objective={"name": "vlc", "learn_scale": True, "scale": 7}))
    assert training.strategy.step.objective.learned() == {"scale": pytest.approx(7)}


def test_a_resumed_run_goes_on_from_its_own_weights(two_steps):
    first, config = two_steps
    whole, _, _ = train(config(first.root, "whole"))
    train(config(first.root, "part", train={"stop_after_epochs": 1.25}))
    part, _, _ = train(config(first.root, "part"), resume=True)
    assert_same_state(whole, part)
    description = json.loads((part.checkpoints / "last/model.json").read_text())
    assert description["spec"]["init_from"] is None  # it stands on its own


def test_a_cnn_from_before_is_one_line_to_start_from_and_to_resume(tiny_config):
    first, _, _ = train(tiny_config("old", train={"stop_after_epochs": 1}))
    for path in first.checkpoints.glob("step-*/model.json"):
        path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
        (path.parent / "hashes.json").unlink()  # of the description that was there
    line = (
        r"checkpoint \S+model\.json: its CNN has batch normalisation .*; train it anew under another run\.name, or load"
    )
    model = {"init_from": str(first.root)}
    with pytest.raises(UserError, match=rf"^model\.init_from: {line}"):
        set_up(tiny_config("new", model=model), resume=False)
    with pytest.raises(Stopped, match=rf"^{line}"):
        train(tiny_config("old"), resume=True)


def test_mistakes_are_one_clear_line(two_steps, tmp_path):
    first, config = two_steps
    with pytest.raises(UserError, match=r"model\.init_from: .*'frozn' in .*; did you mean 'frozen'"):
        set_up(config(first.root.with_name("frozn")), resume=False)
    with pytest.raises(UserError, match=rf"model\.init_from: {re.escape(str(tmp_path))} is neither a run with"):
        set_up(config(tmp_path), resume=False)
    tree = config(first.root).model_dump(mode="json")
    tree["model"]["dim"] = 8
    other = Config.model_validate(tree)
    with pytest.raises(
        Stopped, match=r"model\.init_from: .*model\.safetensors does not fit this model: .*size"
    ) as caught:
        start(other)
    assert "\n" not in str(caught.value)
