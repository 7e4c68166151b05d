import json
import pickle

import pytest
import torch

from allpairs.errors import UserError
from allpairs.models import (
    CnnSpec,
    DualSpec,
    GruSpec,
    RegionsSpec,
    TransformersSpec,
    Vocabulary,
    build,
    load,
    save,
)

RESNET = TransformersSpec(
    name="resnet",
    config={"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
    pretrained=False,
)
CAPTIONS = ["a red cat", "a dog", ""]


def saved(folder, image) -> DualSpec:
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(CAPTIONS)
    spec = DualSpec(image=image, text=GruSpec(kind="bigru", embedding=6), dim=8)
    model = build(spec, len(vocabulary))
    save(folder, model, spec, vocabulary)
    return model, vocabulary


@pytest.mark.parametrize("image", [CnnSpec(width=8), RegionsSpec(features=5), RESNET], ids=lambda spec: spec.kind)
def test_a_loaded_model_is_bit_identical(tmp_path, image):
    model, vocabulary = saved(tmp_path / "deep" / "folder", image)
    state = torch.get_rng_state()
    loaded, words = load(tmp_path / "deep" / "folder")
    assert torch.equal(torch.get_rng_state(), state)
    assert {p.name for p in (tmp_path / "deep" / "folder").iterdir()} == {
        "model.safetensors",
        "model.json",
        "vocabulary.json",
    }
    assert not loaded.training
    images = (
        torch.randn(3, 4, 5) if image.kind == "regions" else torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    )
    with torch.no_grad():
        expected = model.eval()(images, *vocabulary.encode(CAPTIONS))
        actual = loaded(images, *words.encode(CAPTIONS))
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))


def test_a_model_that_came_from_a_folder_loads_after_the_folder_is_gone(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(**RESNET.config)).save_pretrained(tmp_path / "backbone")
    model, _ = saved(tmp_path / "run", TransformersSpec(name=str(tmp_path / "backbone"), freeze=True))
    for path in (tmp_path / "backbone").iterdir():
        path.unlink()
    loaded, _ = load(tmp_path / "run")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.image.freeze
    assert str(tmp_path) not in (tmp_path / "run" / "model.json").read_text()


@pytest.mark.parametrize(
    "image",
    [
        {"kind": "regions", "features": 5},
        {"kind": "transformers", "name": "resnet", "pretrained": False, "freeze": True, "pool": "auto"}
        | {"config": RESNET.config | {"id2label": {"0": "LABEL_0"}, "out_features": ["stage1"], "out_indices": [1]}},
    ],
    ids=lambda image: image["kind"],
)
def test_a_description_from_before_there_was_a_choice_of_models_loads(tmp_path, image):
    model, _ = saved(tmp_path, RegionsSpec(features=5) if image["kind"] == "regions" else RESNET)
    text = {"kind": "bigru", "embedding": 6, "layers": 1, "word_dropout": 0.0}
    description = {"format": 1, "spec": {"image": image, "text": text, "dim": 8}}
    (tmp_path / "model.json").write_text(json.dumps(description))
    loaded, _ = load(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "vocabulary.json"])
def test_a_missing_or_corrupt_file_is_named(tmp_path, name):
    saved(tmp_path, CnnSpec(width=8))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(UserError, match=name):
        load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no {name} in it"):
        load(tmp_path)


def test_a_pickle_is_refused_and_never_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w').close()",))

    saved(tmp_path, CnnSpec(width=8))
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="not a safetensors file"):
        load(tmp_path)
    torch.save({"weights": Trap()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        load(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["spec"]["image"].update(width=16), r"model\.safetensors: does not fit model\.json.*size mismatch"),
        (lambda d: d["spec"]["image"].update(widht=8), "unknown key 'widht'; did you mean 'width'"),
        (lambda d: d["spec"]["image"].update(kind="cnm"), "unknown kind 'cnm'; did you mean 'cnn'"),
        (lambda d: d["spec"]["text"].update(embedding=0), "embedding is 0"),
        (lambda d: d["spec"].pop("text"), "text"),
        (lambda d: d.update(format=9), "format 9; accepted: 1, 2"),
        (lambda d: d.update(format=1), "its CNN has batch normalisation .*; train it anew under another run.name, or"),
    ],
)
def test_a_description_that_does_not_fit_says_why(tmp_path, change, message):
    saved(tmp_path, CnnSpec(width=8))
    description = json.loads((tmp_path / "model.json").read_text())
    change(description)
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=message):
        load(tmp_path)
