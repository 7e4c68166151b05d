import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, ResNetConfig, ResNetModel, ViTConfig, ViTForImageClassification

from allpairs.errors import UserError
from allpairs.models import TransformersSpec
from allpairs.models.backbone import BackboneEncoder

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}


def pictures(side: int, batch: int = 2) -> torch.Tensor:
    shape = (batch, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def random_backbone(name: str, config: dict, **options) -> BackboneEncoder:
    torch.manual_seed(0)
    return BackboneEncoder(TransformersSpec(name=name, config=config, pretrained=False, **options), dim=4)


@pytest.mark.parametrize("side", [32, 48])
@pytest.mark.parametrize("pool", ["auto", "mean", "first"])
@pytest.mark.parametrize(
    ("name", "config"), [("resnet", RESNET), ("vit", VIT), ("clip_vision_model", VIT), ("clip", {"vision_config": VIT})]
)
def test_a_random_backbone_trains_whole(name, config, pool, side):
    encoder = random_backbone(name, config, pool=pool)
    vectors = encoder(pictures(side))
    assert vectors.shape == (2, 4)
    vectors[:, 0].sum().backward()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert len(trained) > 10
    # A parameter that asks for a gradient and never gets one would stop data-parallel training.
    assert all(parameter.grad is not None for parameter in trained)


def test_pooling_takes_the_mean_of_positions_the_class_token_or_the_backbone_s_own():
    pixels = torch.randn(2, 3, 32, 32)
    vit = random_backbone("vit", VIT, pool="mean").eval()
    states = vit.backbone(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(vit._pooled(pixels), states.mean(dim=1))
    vit.pool = "first"
    torch.testing.assert_close(vit._pooled(pixels), states[:, 0])
    resnet = random_backbone("resnet", RESNET).eval()
    maps = resnet.backbone(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(resnet._pooled(pixels), maps.mean(dim=(2, 3)))


def test_a_frozen_backbone_keeps_weights_and_statistics():
    encoder = random_backbone("resnet", RESNET, freeze=True).train()
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    encoder(pictures(32)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == [
        "embedding.weight",
        "embedding.bias",
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.backbone.state_dict().items())


def test_weights_and_pixel_statistics_come_from_a_local_folder(tmp_path):
    torch.manual_seed(1)
    saved = ResNetModel(ResNetConfig(**RESNET))
    saved.save_pretrained(tmp_path)
    statistics = {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 1.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    encoder = BackboneEncoder(TransformersSpec(name=str(tmp_path)), dim=4)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[name], tensor), name
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert encoder.pixels(white).flatten().tolist() == [1.0, 1.5, 0.875]

    fresh = BackboneEncoder(TransformersSpec(name=str(tmp_path), pretrained=False), dim=4)
    assert fresh.spec == encoder.spec
    assert not torch.equal(
        fresh.backbone.embedder.embedder.convolution.weight, saved.embedder.embedder.convolution.weight
    )


def test_clip_gives_its_image_tower(tmp_path):
    torch.manual_seed(1)
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 9,
    }
    clip = CLIPModel(CLIPConfig(vision_config=VIT, text_config=text, projection_dim=4)).eval()
    clip.save_pretrained(tmp_path)
    encoder = BackboneEncoder(TransformersSpec(name=str(tmp_path)), dim=4).eval()
    pixels = torch.randn(2, 3, 32, 32)
    expected = clip.vision_model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(encoder._pooled(pixels), expected)


def test_a_pooling_head_without_weights_is_left_out_rather_than_random(tmp_path):
    torch.manual_seed(1)
    classifier = ViTForImageClassification(ViTConfig(**VIT)).eval()
    classifier.save_pretrained(tmp_path)
    encoder = BackboneEncoder(TransformersSpec(name=str(tmp_path)), dim=4).eval()
    pixels = torch.randn(2, 3, 32, 32)
    states = classifier.vit(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder._pooled(pixels), states.mean(dim=1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TransformersSpec(name="no/such-model-here"), r"'no/such-model-here'.*hub id.*pretrained: false"),
        (TransformersSpec(name="resnit", config={}, pretrained=False), "no transformers model type 'resnit'.*'resnet'"),
        (TransformersSpec(name="resnet", config={"depth": [1]}, pretrained=False), "no 'depth'.*'depths'"),
        (
            TransformersSpec(name="bert", config={"num_hidden_layers": 1}, pretrained=False),
            "'bert' does not encode images",
        ),
    ],
)
def test_a_backbone_that_cannot_be_had_is_refused_with_what_was_tried(spec, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        BackboneEncoder(spec, dim=4)


def test_weights_that_lack_tensors_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    ResNetModel(ResNetConfig(**RESNET)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("embedder.embedder.convolution.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, e\.g\. embedder\.embedder\.convolution\.weight"):
        BackboneEncoder(TransformersSpec(name=str(tmp_path)), dim=4)
