import math

import pytest
import torch

from allpairs.models import (
    CnnSpec,
    DualSpec,
    Ensemble,
    GruSpec,
    TextTransformersSpec,
    TransformersSpec,
    WholeSpec,
    build,
)
from allpairs.objectives import make
from distributed.config.tree import Optimizer
from distributed.step import TrainStep
from distributed.strategies.optimizer import learning_rate_factor, make_adamw, rate_factors, set_learning_rate


def factors(steps, **settings):
    return [learning_rate_factor(Optimizer(**settings), step, steps_per_epoch=4, total_steps=20) for step in steps]


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


def test_exponential_multiplies_after_every_epoch():
    found = factors([0, 3, 4, 8, 19], schedule="exponential", warmup_epochs=0, decay_factor=0.5)
    assert found == pytest.approx([1, 1, 0.5, 0.25, 0.0625])


SMALL = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
TEXT, VISION = {**SMALL, "max_position_embeddings": 8}, {**SMALL, "image_size": 16, "patch_size": 8}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def network(kind):
    """A small model of each kind that has transformers networks, and one that has none."""
    if kind == "clip":
        config = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8}
        return build(WholeSpec(name="clip", config=config, pretrained=False, head=6), 12)
    image = {
        "vit+bert": TransformersSpec(name="vit", config=VISION, pretrained=False),
        "resnet+gru": TransformersSpec(name="resnet", config=RESNET, pretrained=False, pool="gpo"),
        "cnn+gru": CnnSpec(width=8),
    }[kind]
    bert = TextTransformersSpec(name="bert", config=TEXT, pretrained=False)
    return build(DualSpec(image=image, text=bert if kind == "vit+bert" else GruSpec(embedding=6), dim=6), 12)


# In units of 0.5 per layer and 0.2 or 0.3 per tower: what stands above all layers, at each, and below.
RATES = {
    "clip": {
        "backbone.vision_model.embeddings.": 0.2 / 16,
        "backbone.vision_model.pre_layrnorm.": 0.2 / 16,
        "backbone.vision_model.encoder.layers.0.": 0.2 / 8,
        "backbone.vision_model.encoder.layers.2.": 0.2 / 2,
        "backbone.vision_model.post_layernorm.": 0.2,
        "backbone.visual_projection.": 0.2,
        "backbone.text_model.embeddings.": 0.3 / 16,
        "backbone.text_model.encoder.layers.1.": 0.3 / 4,
        "backbone.text_projection.": 0.3,
        "image_head.": 1,
        "text_head.": 1,
    },
    "vit+bert": {
        "image.backbone.embeddings.": 0.2 / 16,
        "image.backbone.layernorm.": 0.2,
        "image.embedding.": 1,
        "text.backbone.embeddings.": 0.3 / 16,
        "text.backbone.encoder.layer.2.": 0.3 / 2,
        "text.backbone.pooler.": 0.3,
        "text.embedding.": 1,
    },
    "resnet+gru": {
        "image.backbone.embedder.": 0.2 / 8,
        "image.backbone.encoder.stages.0.": 0.2 / 4,
        "image.backbone.encoder.stages.1.": 0.2 / 2,
        "image.pooling.": 1,
        "text.": 1,
    },
    "cnn+gru": {"image.": 1, "text.": 1},
}


@pytest.mark.parametrize("kind", RATES)
def test_towers_and_layers_learn_at_rates_of_their_own(kind):
    optimizer = Optimizer(backbone_lr_factor={"image": 0.2, "text": 0.3}, layer_decay=0.5)
    step = TrainStep(network(kind), make("vlc"), None, "fp32")
    found = rate_factors([name for name, _ in step.named_parameters()], optimizer)
    for prefix, rate in RATES[kind].items():
        members = [value for name, value in found.items() if name.startswith(f"encoder.{prefix}")]
        assert members, prefix
        assert members == pytest.approx([rate] * len(members)), prefix


def test_each_net_of_an_ensemble_learns_as_it_would_alone():
    optimizer = Optimizer(backbone_lr_factor={"image": 0.2, "text": 0.3}, layer_decay=0.5)
    alone, together = (
        rate_factors([name for name, _ in TrainStep(encoder, make("vlc"), None, "fp32").named_parameters()], optimizer)
        for encoder in (network("vit+bert"), Ensemble([network("vit+bert"), network("vit+bert")]))
    )
    for net in (0, 1):
        prefix = f"encoder.nets.{net}."
        mine = {name.replace(prefix, "encoder."): rate for name, rate in together.items() if name.startswith(prefix)}
        assert mine == {name: rate for name, rate in alone.items() if name.startswith("encoder.")}


def test_the_optimiser_moves_each_parameter_by_its_own_rate():
    model = network("vit+bert")
    step = TrainStep(model, make("vlc"), None, "fp32")
    settings = Optimizer(lr=1e-3, backbone_lr_factor=0.1, layer_decay=0.5, weight_decay=0)
    before = {name: parameter.detach().clone() for name, parameter in step.named_parameters()}
    adamw = make_adamw(step, settings)
    for parameter in step.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(adamw.param_groups, settings.lr)
    adamw.step()  # Adam's first step is the rate itself, whatever the gradient
    factors = rate_factors(before, settings)
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            moved = (before[name] - parameter.detach()).abs().mean().item()
            assert moved == pytest.approx(1e-3 * factors[name], rel=0.01), name
    assert len(set(factors.values())) == 6
