"""Two nets as one dual encoder: the mean of their similarities, saved and loaded as one folder."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from allpairs.errors import UserError
from allpairs.models import CnnSpec, DualSpec, Ensemble, GruSpec, Vocabulary, WholeSpec, build, load, save

WORDS = Vocabulary.build(["a red square", "a blue circle"], min_count=1, max_size=30)
TOWERS = DualSpec(image=CnnSpec(width=8, blocks=1), text=GruSpec(kind="gru", embedding=6), dim=8)
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CLIP = WholeSpec(
    name="clip",
    pretrained=False,
    config={
        "text_config": {**SIZES, "max_position_embeddings": 16, "projection_dim": 8},
        "vision_config": {**SIZES, "image_size": 16, "patch_size": 8, "projection_dim": 8},
        "projection_dim": 8,
    },
)


@pytest.fixture(params=[TOWERS, CLIP], ids=["towers", "clip"])
def two(request):
    torch.manual_seed(0)
    return request.param, Ensemble([build(request.param, len(WORDS)) for _ in range(2)]).eval()


def inputs():
    torch.manual_seed(1)
    tokens, lengths = WORDS.encode(["a red square", "a blue circle", "red"])
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), tokens, lengths


@torch.no_grad()
def test_a_dot_product_is_the_mean_of_the_two_similarities(two):
    _, both = two
    pictures, *words = inputs()
    images, texts = both(pictures, *words)
    assert images.shape == (3, both.dim) == (3, 16)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    alone = [member(pictures, *words) for member in both.members]
    assert not torch.allclose(alone[0][0], alone[1][0])
    means = sum(cosine_similarity(i[:, None], t[None], dim=2) for i, t in alone) / 2
    torch.testing.assert_close(images @ texts.T, means)
    for found, (image, _) in zip(both.of_each(images), alone, strict=True):
        torch.testing.assert_close(found, image)


@torch.no_grad()
def test_it_is_saved_and_loaded_as_one_model(two, tmp_path):
    spec, both = two
    save(tmp_path, both, spec, WORDS)
    loaded, words = load(tmp_path)
    assert isinstance(loaded, Ensemble)
    assert len(words) == len(WORDS)
    for mine, theirs in zip(both(*inputs()), loaded(*inputs()), strict=True):
        assert torch.equal(mine, theirs)


def test_a_broken_description_says_why(two, tmp_path):
    spec, both = two
    save(tmp_path, both, spec, WORDS)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"count": 2', '"count": 1'))
    with pytest.raises(UserError, match="count is 1; accepted: an integer from 2 to 64"):
        load(tmp_path)
    (tmp_path / "model.json").write_text(text.replace('"count"', '"cuont"'))
    with pytest.raises(UserError, match="unknown key 'cuont'; did you mean 'count'"):
        load(tmp_path)
