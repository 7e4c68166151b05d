"""What a user may write wrongly under `model`: the training command says it in one line, before Ray starts."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import BertTokenizer, CLIPConfig, CLIPModel

import distributed.train

WIDTH = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TEXT = {**WIDTH, "max_position_embeddings": 16}
CNN, GRU = {"kind": "cnn"}, {"kind": "gru"}
BERT = {"kind": "transformers", "name": "bert", "pretrained": False, "config": TEXT}


def named(name: str, **more: object) -> dict:
    return {"kind": "transformers", "name": name, **more}


def towers(image: dict = CNN, text: dict = GRU) -> dict:
    return {"image": image, "text": text, "dim": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP as a folder, one without weights, one without a tokenizer, an empty one."""
    root = tmp_path_factory.mktemp("folders")
    vision = {**WIDTH, "image_size": 24, "patch_size": 8}
    text = {**TEXT, "vocab_size": 6, "bos_token_id": 2, "eos_token_id": 3}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(root / "clip")
    shutil.copytree(root / "clip", root / "no_tokenizer")
    (root / "clip/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    BertTokenizer(str(root / "clip/vocab.txt")).save_pretrained(root / "clip")
    shutil.copytree(root / "clip", root / "no_weights", ignore=shutil.ignore_patterns("*.safetensors"))
    (root / "empty").mkdir()
    return root


@pytest.fixture
def command(
    tiny: Path,
    folders: Path,
    tmp_path: Path,
    in_process: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[dict], tuple[str, str]]:
    """Run the training command with a model where the folders lie, and return what it said and its one line."""

    def run(model: dict) -> tuple[str, str]:
        settings = {
            "run": {"name": "r", "dir": str(tmp_path)},
            "data": {"root": str(tiny)},
            "model": model,
            "train": {"global_batch": 16},
            "tracking": {"wandb": "disabled"},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        monkeypatch.chdir(folders)
        monkeypatch.setattr(distributed.train, "cluster", lambda **_: pytest.fail("Ray was started"))
        code, output, errors = in_process(distributed.train.app)("--config", tmp_path / "run.yaml")
        assert code == 2
        (line,) = errors.splitlines()
        assert not (tmp_path / "r").exists()
        return output, line

    return run


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (named("openai/clip-vit-base-patch3"), r"model\.name: could not load 'openai/clip-vit-base-patch3'; tried as"),
        (named("clipp", pretrained=False), r"model\.name: could not load 'clipp'.*did you mean 'clip'\?"),
        (named("./clap"), r"model\.name: clap does not exist: no 'clap' in \.; did you mean 'clip'\?"),
        (towers(text=named("here/and/there")), r"model\.text\.name: here/and/there does not exist: no 'here' in "),
        (
            towers(CNN | {"pool": "gpo"}),
            r"model\.image\.pool: unknown key \(value 'gpo'\); it is of another model\.image\.kind",
        ),
        (named("empty"), r"model\.name: could not load 'empty'; tried as local folder: "),
        (named("no_weights"), r"model\.name: 'no_weights' has no weights: none of model\.safetensors, .* is in it"),
        (named("no_tokenizer"), r"model\.name: 'no_tokenizer' has no tokenizer: none of tokenizer\.json, "),
        (named("clip"), r"data\.max_caption_tokens=32: the text model of model reads at most 16 tokens"),
        (towers(named("microsoft/resnet-51")), r"model\.image\.name: could not load 'microsoft/resnet-51'; tried as"),
        (towers(named("resnt", pretrained=False)), r"model\.image\.name: could not load 'resnt'.*mean 'resnet'\?"),
        (towers(named("no_weights")), r"model\.image\.name: 'no_weights' has no weights"),
        (
            towers(named("resnet", pretrained=False, config={"hiden_sizes": [8]})),
            r"model\.image\.config: 'resnet' has no 'hiden_sizes'; did you mean 'hidden_sizes'\?",
        ),
        (towers({"kind": "cnnn"}), r"model\.image\.kind='cnnn' is unknown; accepted: 'cnn', "),
        (towers(text=named("bert-base-uncasd")), r"model\.text\.name: could not load 'bert-base-uncasd'; tried as"),
        (towers(text=named("no_tokenizer")), r"model\.text\.name: 'no_tokenizer' has no tokenizer"),
        (towers(text=named("no_weights")), r"model\.text\.name: 'no_weights' has no weights"),
        (towers(text=BERT), r"data\.max_caption_tokens=32: the text model of model\.text reads at most 16 tokens"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    model: dict, message: str, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, line = command(model)
    assert re.search(message, line), line


def test_a_hub_that_does_not_answer_is_named_while_it_is_asked(
    command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at that port; the library asks again after 1, 2, 4, … seconds, which are not waited for here."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    output, line = command(towers(named("microsoft/resnet-50")))
    assert "model.image.name: no folder 'microsoft/resnet-50' here, asking the hub" in output
    assert "model.image.name: could not load 'microsoft/resnet-50'" in line
    assert "connect" in line
