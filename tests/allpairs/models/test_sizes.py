"""Parameter counts as published; networks without storage, so that a real size costs nothing."""

import pytest
import torch

from allpairs.models import RegionsSpec, TextTransformersSpec, TransformersSpec, VsrnSpec, WholeSpec
from allpairs.models.hub import network
from allpairs.models.pooling import GeneralizedPooling
from allpairs.models.regions import RegionsEncoder
from allpairs.models.vsrn import VsrnEncoder

VIT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {
    "projection_dim": 768,
    "text_config": {**VIT, "vocab_size": 49_408, "projection_dim": 768},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}


@pytest.mark.parametrize(
    ("spec", "tower", "published"),
    [
        (WholeSpec(name="clip", pretrained=False, config={}), None, 151_277_313),  # ViT-B/32
        (WholeSpec(name="clip", pretrained=False, config=LARGE), None, 427_944_193),  # ViT-L/14@336
        (WholeSpec(name="siglip", pretrained=False, config={}), None, 203_155_970),  # base, patch 16, 224
        (TextTransformersSpec(name="bert", pretrained=False), "text", 109_482_240),  # base, uncased
        (
            TextTransformersSpec(
                name="roberta",
                pretrained=False,
                config={"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1},
            ),
            "text",
            124_645_632,
        ),
        # torchvision's ResNet-50 and -152, timm's ViT-B/16, without their classifiers of 1,000 classes.
        (TransformersSpec(name="resnet", pretrained=False), "vision", 25_557_032 - 2_049_000),
        (
            TransformersSpec(name="resnet", pretrained=False, config={"depths": [3, 8, 36, 3]}),
            "vision",
            60_192_808 - 2_049_000,
        ),
        (TransformersSpec(name="vit", pretrained=False), "vision", 86_567_656 - 769_000 + 768 * 769),  # and a pooler
    ],
    ids=str,
)
def test_networks_have_the_published_number_of_parameters(spec, tower, published):
    with torch.device("meta"):
        model = network(spec, "model", tower)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_our_own_layers_have_the_number_their_papers_give():
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        pooling, vse = GeneralizedPooling(), RegionsEncoder(RegionsSpec(pool="gpo", mlp=True), 1024)
        vsrn = VsrnEncoder(VsrnSpec(), 2048)
    gru = 2 * 3 * (32 * 32 + 32 * 32 + 32 + 32)
    assert count(pooling) == gru + 32
    perceptron = 2048 * 512 + 512 + 2 * 512 + 512 * 1024 + 1024
    assert count(vse) == 2048 * 1024 + 1024 + perceptron + gru + 32
    layer = 4 * (2048 * 2048 + 2048) + 2 * 2048
    assert count(vsrn) == 2048 * 2048 + 2048 + 4 * layer + 3 * (2 * 2048 * 2048 + 2 * 2048)
