import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
)

from allpairs.errors import UserError
from allpairs.models import Vocabulary, WholeSpec, build, check_text, load, make_tokens, save
from allpairs.models.patches import shapes_of
from allpairs.models.preprocessing import ImagePreprocessing

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
VIT = {**TEXT, "image_size": 32, "patch_size": 8}
VIT.pop("max_position_embeddings")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "cat", "dog", "##s"]
CAPTIONS = ["a red cat", "dogs", "", "a blue dog a red cat a cat"]
EFFICIENTNET = {
    "image_size": 32,
    "hidden_dim": 24,
    "width_coefficient": 1.0,
    "depth_coefficient": 0.1,
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
}
# What the library reads the end of a caption by; the tokenizer of these tests ends it with [SEP] = 3.
ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(WORDS) + 2}
CONFIGS = {
    "clip": {"text_config": {**TEXT, **ENDS}, "vision_config": VIT, "projection_dim": 12},
    "metaclip_2": {"text_config": {**TEXT, **ENDS}, "vision_config": VIT, "projection_dim": 12},
    "chinese_clip": {"text_config": {**TEXT, **ENDS}, "vision_config": VIT, "projection_dim": 12},
    "siglip": {"text_config": {**TEXT, **ENDS}, "vision_config": VIT},
    "siglip2": {
        "text_config": {**TEXT, **ENDS},
        "vision_config": {**{k: v for k, v in VIT.items() if k != "image_size"}, "num_patches": 16},
    },
    "align": {"text_config": {**TEXT, **ENDS}, "vision_config": EFFICIENTNET, "projection_dim": 24},
}
PROCESSORS = {
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32},
    "chinese_clip": {
        "image_processor_type": "ChineseCLIPImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": 32,
        "resample": 2,
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
    "siglip2": {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16},
    "align": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 40, "width": 40},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
    },
}
PROCESSORS["metaclip_2"] = PROCESSORS["clip"]


def folder_of(family, path):
    """Save a random small model of `family` with its tokenizer and preprocessing, as a hub's snapshot has them."""
    torch.manual_seed(2)
    model = AutoModel.from_config(CONFIG_MAPPING[family](**CONFIGS[family])).eval()
    for name, value in (("logit_scale", 3.0), ("logit_bias", -9.0), ("temperature", 0.05)):
        if hasattr(model, name):
            getattr(model, name).data.fill_(value)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    return model


def raise_(error):
    raise error


def forbidden():
    raise AssertionError("a pretrained tokenizer needs no pass over the captions")


def photo(size=(57, 43)):
    generator = np.random.default_rng(3)
    small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(params=sorted(CONFIGS))
def family(request):
    return request.param


def test_both_towers_give_what_the_library_gives(family, tmp_path):
    reference = folder_of(family, tmp_path)
    spec = WholeSpec(name=str(tmp_path))
    tokens = make_tokens(spec, forbidden)
    model = build(spec, len(tokens)).eval()
    ids, lengths = tokens.encode(CAPTIONS, 8)
    assert lengths.max() == 8
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pictures = [photo(), photo((33, 90))]
    inputs = processor(pictures, return_tensors="pt")
    padding = {"padding": "max_length", "max_length": 20} if family.startswith("siglip") else {"padding": True}
    texts = AutoTokenizer.from_pretrained(tmp_path)(
        [*CAPTIONS[:3], "a blue dog a red cat"], return_tensors="pt", **padding
    )
    if family.startswith("siglip"):
        texts = {"input_ids": texts["input_ids"]}
    with torch.no_grad():
        image = reference.get_image_features(**inputs).pooler_output.flatten(1)
        text = reference.get_text_features(**texts).pooler_output
        pixels = torch.stack([torch.from_numpy(model.preprocessing.geometry(picture)) for picture in pictures])
        torch.testing.assert_close(model.image_features(pixels), image, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(model.image_features(pixels[1:]), image[1:], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(model.text_features(ids, lengths), text, atol=1e-6, rtol=1e-6)
        assert model.encode_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).norm(dim=1).allclose(torch.ones(2))
        alone = [model.encode_texts(*tokens.encode([caption], 8)) for caption in CAPTIONS]
        torch.testing.assert_close(torch.cat(alone), model.encode_texts(ids, lengths), atol=1e-6, rtol=1e-6)
    expected = {"scale": 20.0} if family == "align" else {"scale": float(np.exp(3.0))}
    expected |= {"bias": -9.0} if family.startswith("siglip") else {}
    assert model.learned == pytest.approx(expected)


def test_preprocessing_is_the_library_s_bit_for_bit(family, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    ours = ImagePreprocessing.load(str(tmp_path), None)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert ours.side == 32
    for size in ((32, 32), (57, 57), (33, 90), (200, 41), (4000, 9)):
        image = photo(size)
        pixels = ours.geometry(image)
        assert pixels.dtype == np.uint8
        found = processor(image)
        expected = np.asarray(found["pixel_values"][0])
        if family == "siglip2":
            packed, pixels = torch.from_numpy(pixels)[None], pixels[:, 8:]
            assert shapes_of(packed)[0].tolist() == list(found["spatial_shapes"][0])
            count = int(np.sum(found["pixel_attention_mask"][0]))
            expected = expected.reshape(16, 8, 8, 3).transpose(3, 0, 1, 2).reshape(3, 128, 8)[:, : 8 * count]
            pixels = pixels[:, : 8 * count]
        assert pixels.shape == expected.shape
        mean, std = (np.array(value).reshape(3, 1, 1) for value in (ours.mean, ours.std))
        assert np.abs((pixels / 255 - mean) / std - expected).max() < 1e-5  # rounding: a byte apart is 0.01 or more
        assert ours.geometry(image, 40).shape == (3, 40, 40)


def test_several_threads_preprocess_at_once(family, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    ours = ImagePreprocessing.load(str(tmp_path), None)
    pictures = [photo((20 + number, 60 - number)) for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ours.geometry, pictures))
    for picture, pixels in zip(pictures, found, strict=True):
        np.testing.assert_array_equal(pixels, ours.geometry(picture))


@pytest.mark.parametrize("head", [None, 7])
def test_a_saved_model_is_whole(family, head, tmp_path, monkeypatch):
    folder_of(family, tmp_path / "hub")
    spec = WholeSpec(name=str(tmp_path / "hub"), head=head)
    tokens = make_tokens(spec, forbidden)
    torch.manual_seed(0)
    model = build(spec, len(tokens)).eval()
    assert model.dim == (head or model.encode_texts(*tokens.encode(["a"], 8)).shape[1])
    save(tmp_path / "run", model, spec, tokens)
    for path in (tmp_path / "hub").iterdir():
        path.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded, words = load(tmp_path / "run")
    pixels = torch.from_numpy(loaded.preprocessing.geometry(photo()))[None]
    assert torch.equal(pixels[0], torch.from_numpy(model.preprocessing.geometry(photo())))
    with torch.no_grad():
        assert torch.equal(loaded.encode_images(pixels), model.encode_images(pixels))
        ours, theirs = model.encode_texts(*tokens.encode(CAPTIONS, 8)), loaded.encode_texts(*words.encode(CAPTIONS, 8))
        assert torch.equal(ours, theirs)
    # A second generation: saved from what was loaded.
    save(tmp_path / "again", loaded, loaded.spec, words)
    assert (tmp_path / "again" / "model.json").read_text() == (tmp_path / "run" / "model.json").read_text()


def test_a_random_model_reads_the_words_of_its_captions(family, tmp_path):
    config = {
        tower: {name: value for name, value in settings.items() if name not in ENDS}
        if isinstance(settings, dict)
        else settings
        for tower, settings in CONFIGS[family].items()
    }
    spec = WholeSpec(name=family, config=config, pretrained=False, head=6)
    words = make_tokens(spec, lambda: CAPTIONS)
    assert isinstance(words, Vocabulary)
    torch.manual_seed(0)
    model = build(spec, len(words))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    one, other = model(images, *words.encode(CAPTIONS[:3]))
    (one @ other.T).diagonal().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lacking = [name for name in trained if not torch.isfinite(dict(model.named_parameters())[name].grad).all()]
    assert len(trained) > 20
    assert not lacking
    model.eval()
    save(tmp_path, model, spec, words)
    loaded, again = load(tmp_path)
    with torch.no_grad():
        vectors = model.encode_texts(*words.encode(CAPTIONS))
        assert torch.equal(loaded.encode_texts(*again.encode(CAPTIONS)), vectors)
        assert (vectors[0] - vectors[1]).abs().max() > 1e-4
        padded = torch.nn.functional.pad(words.encode(CAPTIONS)[0], (0, 3))
        torch.testing.assert_close(model.encode_texts(padded, words.encode(CAPTIONS)[1]), vectors, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("freeze", "learning"),
    [
        ("none", {"vision_model", "text_model", "visual_projection", "text_projection", "head"}),
        ("image", {"text_model", "visual_projection", "text_projection", "head"}),
        ("text", {"vision_model", "visual_projection", "text_projection", "head"}),
        ("both", {"visual_projection", "text_projection", "head"}),
        ("all", {"head"}),
    ],
)
def test_what_is_frozen_keeps_its_weights(freeze, learning):
    spec = WholeSpec(name="clip", config=CONFIGS["clip"], pretrained=False, head=6, freeze=freeze)
    model = build(spec, 9).train()
    one, other = model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, 4).long(), torch.tensor([4, 2]))
    (one.sum() + other.sum()).backward()
    parts = {
        "head" if "_head" in name else name.split(".")[1]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert parts == learning
    assert model.backbone.vision_model.training == (freeze in ("none", "text"))
    assert model.backbone.text_model.training == (freeze in ("none", "image"))


def test_the_library_says_nothing_beside(family, tmp_path, capfd, caplog):
    folder_of(family, tmp_path)
    capfd.readouterr()
    caplog.clear()
    spec = WholeSpec(name=str(tmp_path))
    build(spec, len(make_tokens(spec, forbidden)))
    build(WholeSpec(name=family, config=CONFIGS[family], pretrained=False), 9)
    out, err = capfd.readouterr()
    assert (out, err, caplog.messages) == ("", "", [])


def test_mistakes_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refused(message, call):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)

    refused(r"model\.name: could not load 'openai/clipp'.*hub id", lambda: build(WholeSpec(name="openai/clipp"), 9))
    for typo in ("clipp", "clpi"):  # as near as clip, by the letters in their order, is clvp
        spec = WholeSpec(name=typo, config={}, pretrained=False)
        refused(f"no transformers model type '{typo}'; did you mean 'clip'", lambda spec=spec: build(spec, 9))
    refused("'bert', not a dual encoder", lambda: build(WholeSpec(name="bert", pretrained=False), 9))
    wrong = WholeSpec(name="clip", config={"text_confg": {}}, pretrained=False)
    refused("no 'text_confg'; did you mean 'text_config'", lambda: build(wrong, 9))
    small = WholeSpec(name="clip", config=CONFIGS["clip"], pretrained=False)
    refused(f"knows {len(WORDS) + 2} tokens, the vocabulary has 14", lambda: build(small, 14))
    refused(
        r"data\.max_caption_tokens=21: the text model of model reads at most 20",
        lambda: check_text(small, 21),
    )
    check_text(small, 20)
    nothing = WholeSpec(name="siglip", config=CONFIGS["siglip"], pretrained=False, freeze="both")
    refused(r"model\.freeze=both: .*nothing is left to train", lambda: build(nothing, 9))

    folder_of("clip", tmp_path)
    spec = WholeSpec(name=str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    refused("could not load.*model.safetensors", lambda: build(spec, 9))
    lacking = "SiglipTokenizer requires the SentencePiece library but it was not found in your environment."
    with monkeypatch.context() as patched:
        patched.setattr(AutoTokenizer, "from_pretrained", lambda name: raise_(ImportError(lacking)))
        refused(
            "has no tokenizer that loads: it needs a package: pip install sentencepiece",
            lambda: make_tokens(spec, forbidden),
        )
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    refused("has no tokenizer: none of tokenizer.json", lambda: make_tokens(spec, forbidden))


def test_clip_s_own_tokenizer_pads_with_the_end_token(tmp_path):
    """The end of a caption is then the first of several end tokens; a cut caption keeps one."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    merges = [("c", "a"), ("ca", "t</w>")]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    torch.manual_seed(3)
    config = {**CONFIGS["clip"], "text_config": {**TEXT, **ends, "vocab_size": len(words)}}
    reference = CLIPModel(CLIPConfig(**config)).eval()
    reference.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["clip"]))
    spec = WholeSpec(name=str(tmp_path))
    tokens = make_tokens(spec, forbidden)
    captions = ["a cat", "cat", "the cat sat on the mat with a hat"]
    ids, lengths = tokens.encode(captions, 9)
    theirs = tokenizer(captions, padding=True, truncation=True, max_length=9, return_tensors="pt")
    assert torch.equal(ids, theirs["input_ids"])
    assert lengths.tolist() == [4, 3, 9]
    with torch.no_grad():
        expected = reference.get_text_features(**theirs).pooler_output
        ours = build(spec, len(tokens)).eval().text_features(ids, lengths)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
