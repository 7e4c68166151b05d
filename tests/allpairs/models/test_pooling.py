"""GPO, region encoders and VSRN against slow definitions, written out one item, one dimension at a time."""

import math

import pytest
import torch

from allpairs.models import RegionsSpec, TransformersSpec, VsrnSpec
from allpairs.models.backbone import BackboneEncoder
from allpairs.models.pooling import GeneralizedPooling, keep_some, position_codes
from allpairs.models.regions import RegionsEncoder
from allpairs.models.vsrn import GraphConvolution, VsrnEncoder


def gru(cell: torch.nn.GRU, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The states of a GRU, by its equations."""
    size = cell.hidden_size
    state, states = torch.zeros(size, dtype=torch.float64), []
    for value in inputs:
        given = cell.weight_ih_l0 @ value + cell.bias_ih_l0
        kept = cell.weight_hh_l0 @ state + cell.bias_hh_l0
        reset = torch.sigmoid(given[:size] + kept[:size])
        update = torch.sigmoid(given[size : 2 * size] + kept[size : 2 * size])
        new = torch.tanh(given[2 * size :] + reset * kept[2 * size :])
        state = (1 - update) * new + update * state
        states.append(state)
    return states


def pooled(pooling: GeneralizedPooling, vectors: list[torch.Tensor]) -> torch.Tensor:
    """VSE∞'s pooling of one set (Chen et al. 2021, equations 5 to 7)."""
    count = len(vectors)
    codes = [
        torch.tensor(
            [
                (math.sin if p % 2 == 0 else math.cos)(k / 10_000 ** ((p - p % 2) / pooling.code))
                for p in range(pooling.code)
            ],
            dtype=torch.float64,
        )
        for k in range(count)
    ]
    there, back = gru(pooling.forwards, codes), gru(pooling.backwards, codes[::-1])[::-1]
    scores = [(pooling.score.weight[0] @ (a + b) / 2).item() / 0.1 for a, b in zip(there, back, strict=True)]
    total = sum(math.exp(score) for score in scores)
    result = []
    for d in range(len(vectors[0])):
        values = sorted((vector[d].item() for vector in vectors), reverse=True)
        result.append(sum(math.exp(s) / total * v for s, v in zip(scores, values, strict=True)))
    return torch.tensor(result, dtype=torch.float64)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(4)


def test_position_codes_are_the_transformer_s():
    codes = position_codes(7, 6)
    assert codes[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert codes[5, 2].item() == pytest.approx(math.sin(5 / 10_000 ** (2 / 6)))


def test_generalized_pooling_is_its_definition_and_ignores_padding(generator):
    torch.manual_seed(0)
    pooling = GeneralizedPooling(code=8, hidden=5).double()
    vectors = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    present = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()
    vectors[~present] = 1e9  # what stands in padding must not matter
    actual = pooling(vectors, present)
    for row in range(4):
        torch.testing.assert_close(actual[row], pooled(pooling, list(vectors[row][present[row]])), atol=1e-12, rtol=0)
    torch.testing.assert_close(actual[3], vectors[3, 2], atol=1e-12, rtol=0)  # a set of one is itself
    weights = pooling.weights(present.sum(dim=1), 6)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4, dtype=torch.float64))
    actual.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in pooling.parameters())


def test_vse_infinity_embeds_by_a_residual_perceptron(generator):
    torch.manual_seed(0)
    encoder = RegionsEncoder(RegionsSpec(features=7, pool="gpo", mlp=True), dim=6).double()
    features = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    encoder(features)  # moves the running statistics
    encoder.eval()
    mlp = encoder.mlp
    for row in range(3):
        vectors = []
        for region in features[row]:
            hidden = (mlp.hidden(region) - mlp.norm.running_mean) / (mlp.norm.running_var + mlp.norm.eps).sqrt()
            hidden = (hidden * mlp.norm.weight + mlp.norm.bias).clamp(min=0)
            vectors.append(encoder.embedding(region) + mlp.output(hidden))
        expected = pooled(encoder.pooling, vectors)
        torch.testing.assert_close(encoder(features)[row], expected, atol=1e-12, rtol=0)
    published = RegionsEncoder(RegionsSpec(features=2048, pool="gpo", mlp=True), dim=1024)
    assert published.mlp.hidden.weight.shape == (512, 2048)
    assert (published.pooling.code, published.pooling.forwards.hidden_size) == (32, 32)


def test_a_fifth_of_the_regions_is_dropped_in_training_only(generator):
    present = torch.ones(400, 50, dtype=torch.bool)
    present[:, 40:] = False
    torch.manual_seed(0)
    kept = keep_some(present, 0.2)
    assert not kept[:, 40:].any()
    assert kept[:, :40].float().mean().item() == pytest.approx(0.8, abs=0.01)
    one = torch.zeros(200, 3, dtype=torch.bool)
    one[:, 1] = True
    assert torch.equal(keep_some(one, 0.9), one)  # never the last one
    encoder = RegionsEncoder(RegionsSpec(features=4, drop=0.5), dim=3)
    features = torch.randn(2, 8, 4, generator=generator)
    torch.manual_seed(1)
    first, second = encoder(features), encoder(features)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(encoder(features), first)  # a function of the seed
    encoder.eval()
    assert torch.equal(encoder(features), encoder.embedding(features).amax(dim=1))


def test_a_fifth_of_a_grid_is_dropped_in_training_only():
    config = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
    spec = TransformersSpec(name="resnet", config=config, pretrained=False, pool="gpo", drop=0.5, freeze=True)
    torch.manual_seed(0)
    encoder = BackboneEncoder(spec, dim=3)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    states = encoder.embedding(encoder.backbone(encoder.pixels(images)).last_hidden_state.flatten(2).transpose(1, 2))
    for row in range(2):
        expected = pooled(encoder.pooling.double(), list(states[row].detach().double()))
        encoder.pooling.float()
        torch.testing.assert_close(encoder(images)[row].double(), expected, atol=1e-5, rtol=1e-5)


def test_the_graph_convolution_is_its_definition(generator):
    torch.manual_seed(0)
    layer = GraphConvolution(4).double()
    vectors = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    assert torch.equal(layer(vectors), vectors)  # the identity at first
    torch.nn.init.normal_(layer.norm.weight)
    layer(vectors)
    layer.eval()
    norm, actual = layer.norm, layer(vectors)
    for row in range(3):
        for i in range(5):
            message = torch.zeros(4, dtype=torch.float64)
            for j in range(5):
                affinity = layer.theta(vectors[row, i]) @ layer.phi(vectors[row, j]) / 5
                message = message + affinity * layer.value(vectors[row, j])
            normal = (layer.output(message) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            expected = vectors[row, i] + normal * norm.weight + norm.bias
            torch.testing.assert_close(actual[row, i], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("final_norm", [False, True])
def test_vsrn_reads_reasoned_regions_in_order(final_norm, generator):
    torch.manual_seed(0)
    encoder = VsrnEncoder(VsrnSpec(features=6, layers=2, final_norm=final_norm), dim=4).double()
    features = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    encoder(features)
    encoder.eval()
    actual = encoder(features)
    for row in range(3):
        reasoned = encoder.graph(encoder.embedding(features[row : row + 1]))[0]
        last = gru(encoder.reading, [vector / vector.norm() for vector in reasoned])[-1]
        if final_norm:
            last = encoder.final_norm(last[None])[0]
        torch.testing.assert_close(actual[row], last, atol=1e-12, rtol=0)
    torch.testing.assert_close(encoder(features[1:2])[0], actual[1], atol=1e-12, rtol=0)
    encoder.train()(features).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
