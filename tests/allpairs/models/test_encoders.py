import pytest
import torch

from allpairs.models import CnnSpec, DualSpec, GruSpec, RegionsSpec, build
from allpairs.models.dual import unit
from allpairs.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from allpairs.models.regions import RegionsEncoder

TOKENS, LENGTHS = torch.tensor([[1, 5, 2], [1, 2, 0]]), torch.tensor([3, 2])


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def model(image, dim: int = 8):
    torch.manual_seed(0)
    return build(DualSpec(image=image, text=GruSpec(embedding=6), dim=dim), vocabulary_size=9)


@pytest.mark.parametrize("size", [(64, 64), (33, 90)])
def test_the_cnn_gives_unit_vectors_for_any_picture_size(size):
    images, texts = model(CnnSpec(width=8))(pictures(2, 3, *size), TOKENS, LENGTHS)
    for vectors in (images, texts):
        assert vectors.shape == (2, 8)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_every_parameter_of_the_cnn_gets_a_gradient():
    network = model(CnnSpec(width=8))
    images, texts = network(pictures(2, 3, 64, 64), TOKENS, LENGTHS)
    (images @ texts.T)[0, 1].backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_pixels_are_normalised_per_channel():
    images = pictures(2, 3, 4, 5)
    expected = torch.empty(2, 3, 4, 5, dtype=torch.float64)
    for channel in range(3):
        expected[:, channel] = (images[:, channel].double() / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
    torch.testing.assert_close(PixelNormalization().double()(images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)])
def test_pictures_that_are_not_uint8_rgb_are_refused(images):
    with pytest.raises(ValueError, match=r"uint8 \[b, 3, H, W\]"):
        model(CnnSpec(width=8)).encode_images(images)


def test_regions_are_projected_then_maximised_per_dimension():
    encoder = RegionsEncoder(RegionsSpec(features=2), dim=3)
    with torch.no_grad():
        encoder.embedding.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        encoder.embedding.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    features = torch.tensor([[[1.0, 4.0], [3.0, 2.0]], [[-1.0, 0.0], [-5.0, -6.0]]])
    # First item: regions give (1.5, 4, -5) and (3.5, 2, -5); second: (-0.5, 0, 1) and (-4.5, -6, 11).
    assert encoder(features).tolist() == [[3.5, 4.0, -5.0], [-0.5, 0.0, 11.0]]


def test_regions_may_come_in_any_order_and_number():
    network = model(RegionsSpec(features=5)).double()
    features = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    vectors = network.encode_images(features)
    for same in (features.flip(1), torch.cat([features, features[:, :1]], dim=1)):
        torch.testing.assert_close(network.encode_images(same), vectors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 4), (2, 0, 5)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[b, R, 5\]"):
        model(RegionsSpec(features=5)).encode_images(torch.zeros(shape))


def test_vectors_are_normalised_in_float32_under_bf16_autocast():
    network = model(CnnSpec(width=8), dim=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images, texts = network(pictures(2, 3, 64, 64), TOKENS, LENGTHS)
    for vectors in (images, texts):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)


def test_a_float64_model_stays_float64():
    network = model(RegionsSpec(features=5)).double()
    images, texts = network(torch.randn(2, 3, 5), TOKENS, LENGTHS)
    assert (images.dtype, texts.dtype) == (torch.float64, torch.float64)


def test_the_same_seed_builds_the_same_model():
    first, second = model(CnnSpec(width=8)), model(CnnSpec(width=8))
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_picture_of_the_cnn_does_not_depend_on_its_batch():
    encoder = model(CnnSpec(width=8)).image.double().train()
    with torch.no_grad():
        for parameter in encoder.parameters():  # a fresh residual block is the identity
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    images = pictures(5, 3, 40, 64)
    together = encoder(images)
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert not [name for name, _ in encoder.named_buffers() if not name.startswith("pixels.")]


def test_the_cnn_normalises_the_channels_of_each_position_and_pools_mean_and_maximum():
    encoder = model(CnnSpec(width=8, blocks=1)).image.double()
    (convolution, norm, _), residual = encoder.features
    with torch.no_grad():
        norm.weight.mul_(1.5)
        norm.bias.add_(0.25)
    images = pictures(1, 3, 8, 8)
    map_Chw = convolution(encoder.pixels(images))[0].detach()
    positions = []
    for row in range(2):
        for column in range(2):
            values = map_Chw[:, row, column]
            centred = values - values.sum() / 8
            scaled = centred / ((centred**2).sum() / 8 + 1e-5).sqrt()
            positions.append((1.5 * scaled + 0.25).clamp(min=0))
    sets_pC = torch.stack(positions)  # the residual block adds nothing yet
    assert not residual.branch[1].weight.any()
    pooled = torch.cat([sets_pC.sum(0) / 4, sets_pC.max(0).values])
    expected = encoder.embedding.weight @ pooled + encoder.embedding.bias
    torch.testing.assert_close(encoder(images)[0], expected, rtol=1e-12, atol=1e-12)


def test_every_later_block_of_the_cnn_halves_the_map_and_doubles_the_channels():
    encoder = model(CnnSpec(width=8, blocks=3)).image
    maps = encoder.features(encoder.pixels(pictures(2, 3, 64, 48)))
    assert maps.shape == (2, 32, 4, 3)  # 16×12 patches, halved twice


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_vectors_of_any_length_are_made_units(size):
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    rows = rows / rows.abs().amax(dim=1, keepdim=True)
    expected = torch.nn.functional.normalize(rows.double(), dim=1)
    torch.testing.assert_close(unit(rows * size).double(), expected, rtol=1e-5, atol=1e-6)
    assert unit(torch.zeros(2, 8)).eq(0).all()
