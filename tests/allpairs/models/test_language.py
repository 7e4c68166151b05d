import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer, CLIPConfig, CLIPModel, RobertaConfig, RobertaModel

from allpairs.errors import UserError
from allpairs.models import DualSpec, RegionsSpec, TextTransformersSpec, build, check_text, load, make_tokens, save
from allpairs.models.backbone import BackboneEncoder
from allpairs.models.language import LanguageEncoder
from allpairs.models.spec import TransformersSpec

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "cat", "dog", "##s"]
CAPTIONS = ["a red cat", "dogs", "a blue dog a red cat a cat"]


def random_encoder(pool="auto", name="bert", **options):
    torch.manual_seed(0)
    spec = TextTransformersSpec(name=name, config=SMALL, pretrained=False, pool=pool, **options)
    return LanguageEncoder(spec, dim=6, vocabulary_size=12)


def spec_of(folder, **options):
    return DualSpec(image=RegionsSpec(features=3), text=TextTransformersSpec(name=str(folder), **options), dim=6)


def save_bert(folder, model=None):
    torch.manual_seed(1)
    model = model or BertModel(BertConfig(**SMALL, vocab_size=len(WORDS))).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return model


@pytest.mark.parametrize("pool", ["auto", "mean", "first", "gpo"])
@pytest.mark.parametrize("name", ["bert", "roberta", "clip_text_model"])
def test_padding_and_company_change_nothing_and_everything_learns(name, pool):
    encoder = random_encoder(pool, name).eval()
    tokens = torch.tensor([[1, 5, 6, 7, 2, 0, 0], [1, 8, 2, 0, 0, 0, 0]])
    lengths = torch.tensor([5, 3])
    vectors = encoder(tokens, lengths)
    for row, length in enumerate(lengths):
        alone = encoder(tokens[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], vectors[row], atol=1e-6, rtol=1e-6)
    encoder.train()(tokens, lengths)[:, 0].sum().backward()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert len(trained) > 20
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in trained)


def test_a_pretrained_tower_is_the_library_s_with_its_own_tokenizer(tmp_path):
    reference = save_bert(tmp_path)
    tokens = make_tokens(spec_of(tmp_path), lambda: pytest.fail("a pretrained tokenizer reads no captions"))
    ids, lengths = tokens.encode(CAPTIONS, 20)
    inputs = BertTokenizer.from_pretrained(tmp_path)(CAPTIONS, return_tensors="pt", padding=True)
    assert torch.equal(ids, inputs["input_ids"])
    assert torch.equal(lengths, inputs["attention_mask"].sum(dim=1))
    assert tokens.encode(CAPTIONS, 4)[1].tolist() == [4, 4, 4]
    with torch.no_grad():
        expected = reference(**inputs)
        states, mask = expected.last_hidden_state, inputs["attention_mask"][..., None]
        for pool, vectors in {
            "auto": expected.pooler_output,
            "first": states[:, 0],
            "mean": (states * mask).sum(dim=1) / mask.sum(dim=1),
        }.items():
            model = build(spec_of(tmp_path, pool=pool), len(tokens)).eval()
            text = model.text
            torch.testing.assert_close(text(ids, lengths), text.embedding(vectors), atol=1e-6, rtol=1e-6)


def test_the_text_tower_of_clip(tmp_path):
    torch.manual_seed(1)
    vision = {**{k: v for k, v in SMALL.items() if not k.startswith("max")}, "image_size": 16, "patch_size": 8}
    text = {**SMALL, "vocab_size": len(WORDS), "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).eval()
    save_bert(tmp_path, clip)
    tokens = make_tokens(spec_of(tmp_path), tuple)
    model = build(spec_of(tmp_path), len(tokens)).eval()
    ids, lengths = tokens.encode(CAPTIONS)
    with torch.no_grad():
        expected = clip.text_model(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
        ours = model.text(ids, lengths)
        torch.testing.assert_close(ours, model.text.embedding(expected), atol=1e-6, rtol=1e-6)


def test_it_is_saved_whole(tmp_path):
    save_bert(tmp_path / "bert")
    spec = spec_of(tmp_path / "bert", pool="gpo", drop=0.2)
    tokens = make_tokens(spec, tuple)
    model = build(spec, len(tokens)).eval()
    save(tmp_path / "run", model, spec, tokens)
    for path in (tmp_path / "bert").iterdir():
        path.unlink()
    assert str(tmp_path) not in (tmp_path / "run" / "model.json").read_text()
    loaded, words = load(tmp_path / "run")
    ids, lengths = words.encode(CAPTIONS)
    with torch.no_grad():
        assert torch.equal(loaded.encode_texts(ids, lengths), model.encode_texts(*tokens.encode(CAPTIONS)))


def test_tokens_are_dropped_in_training_but_never_the_first_and_last():
    encoder = random_encoder("mean", drop=0.9)
    seen = []
    encoder.backbone.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    tokens = torch.tensor([[1, 5, 6, 7, 8, 9, 2, 0]])
    for _ in range(30):
        encoder(tokens, torch.tensor([7]))
    masks = torch.cat(seen)
    assert masks[:, 0].all()
    assert masks[:, 6].all()
    assert not masks[:, 7].any()
    assert masks[:, 1:6].float().mean() < 0.3
    encoder.eval()(tokens, torch.tensor([7]))
    assert seen[-1].tolist() == [[1] * 7 + [0]]


def test_frozen_text_models_and_pooled_grids_of_pictures():
    encoder = random_encoder(freeze=True).train()
    encoder(torch.tensor([[1, 5, 2]]), torch.tensor([3])).sum().backward()
    assert {name.split(".")[0] for name, p in encoder.named_parameters() if p.grad is not None} == {"embedding"}
    assert not encoder.backbone.training
    vit = {**{k: v for k, v in SMALL.items() if not k.startswith("max")}, "image_size": 16, "patch_size": 8}
    image = BackboneEncoder(TransformersSpec(name="vit", config=vit, pretrained=False, pool="gpo"), dim=6).eval()
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    states = image.embedding(image.backbone(pixel_values=image.pixels(pixels)).last_hidden_state)
    expected = image.pooling(states, torch.ones(states.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(image(pixels), expected)


def test_mistakes_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"model\.text\.name: could not load 'bert-bse'.*hub id.*did you mean 'bert'"):
        check_text(spec_of("bert-bse"), 20)
    with pytest.raises(UserError, match="'vit' does not encode captions"):
        LanguageEncoder(TextTransformersSpec(name="vit", pretrained=False, config={"num_hidden_layers": 1}), 6, 12)
    RobertaModel(RobertaConfig(**SMALL, vocab_size=len(WORDS), pad_token_id=1)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.text\.name: '.*' has no tokenizer"):
        check_text(spec_of(tmp_path), 20)
    save_bert(tmp_path, RobertaModel(RobertaConfig(**SMALL, vocab_size=len(WORDS), pad_token_id=1)))
    with pytest.raises(UserError, match=r"data\.max_caption_tokens=19: .*reads at most 18"):  # numbered from pad + 1
        check_text(spec_of(tmp_path), 19)
    tokens = make_tokens(spec_of(tmp_path), tuple)
    with pytest.raises(UserError, match=r"max_length is 19; accepted: 1 to 18"):
        tokens.encode(CAPTIONS, 19)
