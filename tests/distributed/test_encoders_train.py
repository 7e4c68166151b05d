"""Every kind of encoder, as a user trains it: set up, trained, stopped and resumed, its checkpoint loaded alone."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, CLIPConfig, CLIPModel

from allpairs import models
from allpairs.errors import UserError
from allpairs.objectives import make
from distributed.beginning import start_scale
from distributed.config import dump, load
from distributed.data.writer import Sample, write_split
from distributed.embed import embed
from distributed.launch import set_up
from distributed.loop import Training
from distributed.run_directory import RunDirectory
from distributed.world import Stopped, World
from tests.conftest import COLOURS, ROOT, SIZES, samples
from tests.distributed.test_loop import assert_same_state, rows, train
from tests.distributed.test_ray_train import command
from tests.distributed.test_strategies import gradient_norms, largest_difference, torchrun

WIDTH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**WIDTH, "image_size": 24, "patch_size": 8}
TEXT = {**WIDTH, "max_position_embeddings": 32}
CLIP = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}
BERT = {"kind": "transformers", "name": "bert", "pretrained": False, "config": TEXT}
VIT = {"kind": "transformers", "name": "vit", "pretrained": False, "config": VISION}
SIGLIP = {"text_config": {**TEXT, "projection_size": 16}, "vision_config": VISION}
MODELS = {
    "clip": {"kind": "transformers", "name": "clip", "pretrained": False, "config": CLIP, "head": 12},
    "siglip": {"kind": "transformers", "name": "siglip", "pretrained": False, "config": SIGLIP},
    "folder": {"kind": "transformers", "name": "hub/clip"},
    "towers": {"dim": 16, "image": VIT | {"pool": "gpo", "drop": 0.2}, "text": {**BERT, "pool": "mean"}},
    "vse_infinity": {
        "dim": 16,
        "image": {"kind": "regions", "features": 15, "pool": "gpo", "mlp": True, "drop": 0.2},
        "text": {**BERT, "pool": "gpo", "drop": 0.2},
    },
    "vsrn": {"dim": 16, "image": {"kind": "vsrn", "features": 15, "layers": 2}, "text": {"kind": "gru"}},
}
ABOVE_CHANCE = 3 * 2 * 100 * (1 + 5 + 10) / 25
"""An RSUM of three times chance: k of 25, both directions."""


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """The tiny squares as five regions each: what a detector would say of colour, size and place, with noise."""
    root = tmp_path_factory.mktemp("regions")
    noise = np.random.default_rng(0)
    places = {"upper left": 0, "upper right": 1, "lower left": 2, "lower right": 3}
    for split in ("train", "val", "test"):
        out = []
        for sample in samples(split != "train"):
            colour, size, corner = sample.key.rsplit("-", 2)
            features = noise.normal(0, 0.3, (5, 15)).astype(np.float32)
            features[:, COLOURS.index(colour)] += 2
            features[:, 8 + min(list(SIZES).index(size), 2)] += 2
            features[:, 11 + list(places.values()).index(int(corner))] += 2
            stream = io.BytesIO()
            np.save(stream, features)
            out.append(Sample(sample.key, "npy", stream.getvalue(), sample.captions))
        write_split(root / split, out, name="tiny", split=split, source={}, kind="regions", shard_samples=40)
    return root


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A small CLIP as a hub's snapshot, in a folder that is named relative to where the user stands."""
    folder = tmp_path / "hub" / "clip"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, *SIZES, "a", "square", "upper", "lower"]
    words += ["left", "right", ","]
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model = CLIPModel(CLIPConfig(**{**CLIP, "text_config": text}))
    model.logit_scale.data.fill_(float(np.log(20.0)))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 24}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def config_of(tiny_config, regions, hub):
    """Make a configuration for a model; the learning rate suits all of these."""

    def make(name, run="run", **sections):
        of_regions = MODELS[name].get("image", {}).get("kind") in ("regions", "vsrn")
        data = {"root": str(regions)} if of_regions else {"augment": "crop"} if name == "folder" else {}
        made = tiny_config(
            run, data=data, optimizer={"lr": 5e-3, "warmup_epochs": 0.5}, **{"train": {"epochs": 2}} | sections
        )
        tree = made.model_dump(mode="json") | {"model": MODELS[name]}
        return type(made).model_validate(tree)

    return make


@pytest.mark.parametrize("name", MODELS)
def test_every_encoder_trains_resumes_and_loads_alone(name, config_of, hub, tmp_path):
    whole, summary, _ = train(config_of(name, "whole"))
    losses = list(rows(whole, "train/loss").values())
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    train(config_of(name, "part", train={"epochs": 2, "stop_after_epochs": 1.25}))
    shutil.rmtree(hub)  # neither a resumed run nor a checkpoint needs hub or folder
    part, _, _ = train(config_of(name, "part"), resume=True)
    assert_same_state(whole, part)
    assert rows(whole, "val/rsum") == rows(part, "val/rsum")
    embed(run=whole.root, split="test", out=tmp_path / "embeddings")
    saved = np.load(whole.embeddings("test") / "images.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings/images.npy"), saved)
    assert summary["test/rsum"] > 0
    loaded, words = models.load(whole.checkpoints / "last")
    assert loaded.encode_texts(*words.encode(["a red square"])).shape == (1, loaded.dim)


def test_whole_models_towers_and_vsrn_train_alike_at_any_world_resume_and_learn(config_of):
    """Real ranks under DDP and ZeRO-2.

    Without dropout the masks of a rank are none; batch statistics, which VSRN has, are a rank's own.
    """
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    towers = {
        "dim": 16,
        "image": VIT | {"config": VISION | plain, "pool": "gpo"},
        "text": BERT | {"config": TEXT | plain, "pool": "gpo"},
    }

    def prepared(name, model, **settings):
        config = config_of(name, f"{name}-{len(runs)}", train={"epochs": 2, "log_every": 1} | settings)
        tree = config.model_dump(mode="json") | {"model": model}
        runs.append(set_up(type(config).model_validate(tree), resume=False).config)
        return runs[-1]

    def in_two_sessions(name, model, **settings):
        first = prepared(name, model, stop_after_epochs=1.25, **settings)
        then = load(first, ["train.stop_after_epochs=null"])
        again = first.with_name("again.yaml")
        again.write_text(dump(then))
        return first, again

    runs, zero = [], {"strategy": "deepspeed", "zero_stage": 2}
    kinds = {"clip": MODELS["clip"], "towers": towers, "vsrn": MODELS["vsrn"]}
    alone = [prepared(name, model) for name, model in kinds.items()]
    torchrun(1, *alone)
    both = [prepared(name, model) for name, model in kinds.items()]
    zeros = [prepared(name, model, **zero) for name, model in kinds.items()]
    parts = [in_two_sessions(name, kinds[name], **way) for name in ("towers", "vsrn") for way in ({}, zero)]
    long = {"epochs": 14, "log_every": 100}
    learners = [prepared("towers", MODELS["towers"], **long | zero), prepared("vsrn", MODELS["vsrn"], **long)]
    torchrun(2, *both, *zeros, *(session for sessions in parts for session in sessions), *learners)
    for whole, (part, _) in zip((both[1], zeros[1], both[2], zeros[2]), parts, strict=True):
        assert largest_difference(whole, part) == 0
    for run in learners:
        assert json.loads(run.with_name("summary.json").read_text())["val/best_rsum"] > ABOVE_CHANCE
    for name, one, *others in zip(kinds, alone, both, zeros, strict=True):
        losses, *shared = (list(rows(RunDirectory(run.parent), "train/loss").values()) for run in (one, *others))
        # VSRN's graph convolutions normalise by the statistics of a rank's own share, with weights that begin at zero.
        alike = 2 if name == "vsrn" else 10
        assert [len(found) for found in (losses, *shared)] == [10] * 3
        for found, other in zip(shared, others, strict=True):
            assert found[:alike] == pytest.approx(losses[:alike], rel=1e-4)
            assert found == pytest.approx(shared[0], rel=1e-4)
            if name != "vsrn":
                assert gradient_norms(other) == pytest.approx(gradient_norms(one), rel=1e-3)


@pytest.mark.parametrize("name", ["clip", "siglip", "towers"])
def test_recomputed_activations_need_less_memory_and_change_nothing(name, config_of):
    """The towers draw dropout masks, twice the same."""

    def kept(run, **sections):
        config = config_of(name, run, train={"epochs": 1, "log_every": 1} | sections)
        set_up(config, resume=False)
        training, sizes = Training(config, World.join(torch.device("cpu")), lambda _: None), {}
        forward = training.strategy.forward

        def counting(pairs, chunks):
            def note(tensor):
                sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                return forward(pairs, chunks)

        training.strategy.forward = counting
        training.run()
        return RunDirectory(config.run_dir), sum(sizes.values())

    (plain, all_of_them), (again, some) = kept("plain"), kept("again", activation_checkpointing=True)
    assert some < 0.8 * all_of_them
    assert_same_state(plain, again)
    assert rows(plain, "train/loss") == rows(again, "train/loss")


def test_what_cannot_recompute_says_so(config_of):
    config = config_of("vsrn", train={"epochs": 1, "activation_checkpointing": True})
    set_up(config, resume=False)
    with pytest.raises(Stopped, match="activation_checkpointing=true: this model has no network of transformers that"):
        Training(config, World.join(torch.device("cpu")), lambda _: None)


@pytest.mark.parametrize("name", ["clip", "vse_infinity"])
def test_recall_rises_far_above_chance(name, config_of):
    _, summary, _ = train(config_of(name, train={"epochs": 14}))
    assert summary["val/best_rsum"] > ABOVE_CHANCE


def test_two_workers_on_ray_fine_tune_a_clip_from_a_folder(hub, tiny, tmp_path):
    """The folder is named relative to where the user stands; the workers stand elsewhere, and no hub answers."""
    (tmp_path / "clip.yaml").write_text(
        f"""
run: {{name: tuned, dir: {tmp_path / "runs"}}}
data: {{root: {tiny}}}
model: {{kind: transformers, name: hub/clip, head: 16}}
objective: {{name: vlc, learn_scale: true}}
optimizer: {{lr: 5.0e-3, layer_decay: 0.9, schedule: exponential, decay_factor: 0.95}}
train: {{epochs: 14, global_batch: 22, strategy: deepspeed, zero_stage: 2}}
eval: {{every: 14}}
tracking: {{wandb: disabled}}
cluster: {{workers: 2}}
"""
    )
    result = command(
        "distributed.train", "--config", str(tmp_path / "clip.yaml"), HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT),
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    run = RunDirectory(tmp_path / "runs/tuned")
    assert run.read_summary()["val/best_rsum"] > ABOVE_CHANCE
    assert rows(run, "train/scale")[10] == pytest.approx(20, rel=0.2)  # it started from the checkpoint's
    loaded, words = models.load(run.checkpoints / "best")
    assert loaded.preprocessing.side == 24
    assert loaded.encode_texts(*words.encode(["a red square"])).shape == (1, 16)


def test_a_learned_scale_starts_from_the_checkpoint_s_unless_it_is_given(config_of, hub):
    def scale(name, **objective):
        config = config_of(name, objective={"name": "vlc", **objective})
        set_up(config, resume=False)
        training = Training(config, World.join(torch.device("cpu")), lambda _: None)
        shutil.rmtree(config.run_dir)
        return training.strategy.step.objective.learned().get("scale")

    assert scale("folder", learn_scale=True) == pytest.approx(20.0)
    assert scale("folder", learn_scale=True, scale=30) == pytest.approx(30.0)
    assert scale("folder") is None
    assert scale("clip", learn_scale=True) == pytest.approx(1 / 0.07)
    weights = load_file(hub / "model.safetensors")
    save_file(weights | {"logit_scale": torch.tensor(4.6052)}, hub / "model.safetensors", {"format": "pt"})  # OpenAI's
    assert scale("folder", learn_scale=True) == pytest.approx(100)


def test_a_learned_bias_starts_from_siglip_s():
    brought = {"scale": 117.3, "bias": -12.9}
    objective = make("siglip", learn_scale=True)
    start_scale(objective, brought, {"name": "siglip"})
    assert objective.learned() == pytest.approx({"scale": 100, "bias": -12.9})
    objective = make("siglip", learn_scale=True, bias=-5)
    start_scale(objective, {"scale": 20.0, "bias": -12.9}, {"bias": -5})
    assert objective.learned() == pytest.approx({"scale": 20, "bias": -5})
    fixed = make("siglip")
    start_scale(fixed, brought, {})
    assert fixed.scale == 10


def test_mistakes_are_found_before_anything_starts(config_of, tiny_config, hub, regions, tiny):
    long = {"root": str(tiny), "image_size": 24, "max_caption_tokens": 33}
    tree = config_of("clip").model_dump(mode="json")
    with pytest.raises(UserError, match=r"data\.max_caption_tokens=33: .* reads at most 32 tokens"):
        set_up(type(config_of("clip")).model_validate(tree | {"data": long}), resume=False)
    with pytest.raises(UserError, match=r"holds regions, but model\.kind=transformers reads images"):
        set_up(type(config_of("clip")).model_validate(tree | {"data": {"root": str(regions)}}), resume=False)
    reader = {"image": {"kind": "regions", "features": 2048}}
    with pytest.raises(UserError, match=r"holds regions of 15 features, but model\.image\.features=2048; accepted: 15"):
        set_up(tiny_config(model=reader, data={"root": str(regions)}), resume=False)
    for file in ("vocab.txt", "tokenizer.json"):
        (hub / file).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"model\.name: 'hub/clip' has no tokenizer"):
        set_up(config_of("folder"), resume=False)
    assert not config_of("folder").run_dir.exists()
