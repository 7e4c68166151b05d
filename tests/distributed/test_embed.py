"""``python -m distributed.embed``: a split's embeddings under a checkpoint, ready for the analysis of objectives."""

import importlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allpairs import models
from allpairs.command import run as run_command
from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from distributed.data import open_dataset
from distributed.data.images import read_images
from distributed.data.writer import Sample, write_split
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.world import World


@pytest.fixture
def trained(tiny_config):
    """A run of two epochs with a learned scale, in this process."""
    config = tiny_config("small", train={"epochs": 2})
    directory = set_up(config, resume=False)
    complete(Training(config, World.join(torch.device("cpu")), lambda _: None))
    return config, directory


@pytest.fixture
def command(in_process):
    """Run the command inside this process, up to its exit."""
    return in_process(importlib.import_module("distributed.embed").app)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_samples_that_cannot_be_used_are_told(trained, command, tmp_path, tiny_samples):
    samples = [*tiny_samples(held_out=False), Sample("broken", "png", b"?", ["no picture"])]
    (tmp_path / "d").mkdir()
    write_split(tmp_path / "d" / "train", samples, name="d", split="train", source={})
    arguments = ("--run", trained[1].root, "--data", tmp_path / "d", "--split", "train", "--out", tmp_path / "e")
    code, out, errors = command(*arguments)
    assert code == 0
    assert "103 images" in out
    assert "left out, as they cannot be used: train: 1 undecodable image\n" in errors


def test_a_split_under_a_checkpoint(trained, command, tmp_path):
    config, directory = trained
    code, out, _ = command("--run", directory.root, "--split", "train", "--out", tmp_path / "t")
    assert code == 0
    assert "103 images and 206 captions" in out
    found = EmbeddingSet.read(tmp_path / "t")
    assert found.images.shape == (103, config.model.dim)
    np.testing.assert_allclose(np.linalg.norm(found.images, axis=1), 1, rtol=1e-5)
    # Each row is what the model makes of that sample: encoded here one caption at a time, in another order.
    encoder, vocabulary = models.load(directory.checkpoints / "best")
    dataset = open_dataset(config.data.folder("train"))
    for row in (102, 0, 57):
        captions = dataset.read(int(found.image_ids[row])).captions
        mine = found.captions[found.caption_ids == found.image_ids[row]]
        assert len(mine) == len(captions) == 2
        for text, embedding in zip(captions, mine, strict=True):
            with torch.inference_mode():
                expected = encoder.encode_texts(*vocabulary.encode([text], config.data.max_caption_tokens))[0]
            np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-5)


def test_the_file_says_where_it_comes_from(trained, command, tmp_path):
    _, directory = trained
    for checkpoint in ("best", "last"):
        arguments = ("--run", directory.root, "--split", "val", "--checkpoint", checkpoint)
        assert command(*arguments, "--out", tmp_path / checkpoint)[0] == 0
        written = EmbeddingSet.read(tmp_path / checkpoint)
        origin = written.origin
        folder = directory.checkpoints / checkpoint
        assert origin.step == json.loads((folder / "position.json").read_text())["step"]
        assert (origin.run, origin.checkpoint, written.split) == ("small", checkpoint, "val")
        learned = float(load_file(folder / "objective.safetensors")["log_scale"].exp())
        assert origin.objective == "vlc"
        assert origin.arguments == {"learn_scale": False, "scale": pytest.approx(learned, rel=1e-6)}
        assert learned != pytest.approx(1 / 0.07, rel=1e-6)
        assert origin.captions_per_image == 1


def test_the_embeddings_are_those_the_run_was_evaluated_with(trained, command, tmp_path):
    _, directory = trained
    command("--run", directory.root, "--split", "test", "--out", tmp_path / "t")
    found, evaluated = EmbeddingSet.read(tmp_path / "t"), EmbeddingSet.read(directory.embeddings("test"))
    np.testing.assert_array_equal(found.image_ids, evaluated.image_ids)
    np.testing.assert_allclose(found.images, evaluated.images, atol=1e-6)
    np.testing.assert_allclose(found.captions, evaluated.captions, atol=1e-6)


def test_counts_follow_with_one_command(trained, command, tmp_path):
    _, directory = trained
    command("--run", directory.root, "--split", "train", "--out", tmp_path / "t")
    app = importlib.import_module("allpairs.analysis.__main__").make_app()
    with pytest.raises(SystemExit) as exit_:
        run_command(
            app,
            ["counts", "--embeddings", str(tmp_path / "t"), "--out", str(tmp_path), "--batch-size", "50"],
        )
    assert exit_.value.code == 0
    [row] = json.loads((tmp_path / "counts.json").read_text())["rows"]
    assert (row["run"], row["split"], row["family"], row["batches"]) == ("small", "train", "softmax", 2)
    assert 0 < row["counts"]["i2t"]["w_plus"]["mean"] < 1


@pytest.fixture
def evaluated(in_process):
    """Run the evaluation inside this process, up to its exit."""
    return in_process(importlib.import_module("retrieval_eval.evaluate.__main__").app)


def test_any_split_of_the_run_is_measured_by_the_command_it_is_told(trained, command, evaluated):
    _, directory = trained
    arguments = ("--run", directory.root, "--split", "val")
    code, _, err = evaluated(*arguments)
    assert code == 2
    told = re.search(r"`python -m distributed.embed (.*)` makes them", err).group(1).split()
    code, out, err = command(*told)
    assert (code, err) == (0, "")
    told = re.search(r"measure: python -m retrieval_eval.evaluate (.*)\n", out).group(1).split()
    assert told == [str(argument) for argument in arguments]
    code, out, err = evaluated(*told)
    assert (code, err) == (0, "")
    # The best checkpoint's RSUM on val is what chose it.
    record = json.loads((directory.root / "metrics_val.json").read_text())
    assert record["manifest"]["split"] == "val"
    assert record["metrics"]["rsum"] == pytest.approx(directory.read_summary()["val/best_rsum"], abs=1e-6)


def test_other_data_than_the_runs(trained, command, evaluated, tmp_path, tiny_samples):
    _, directory = trained
    for split, samples in (("test", tiny_samples(True)[:7]), ("extra", tiny_samples(False)[:9])):
        (tmp_path / "other").mkdir(exist_ok=True)
        write_split(tmp_path / "other" / split, samples, name="other", split=split, source={})
    run = ("--run", directory.root)
    for arguments, name, images in (
        (("--data", tmp_path / "other"), "other-test", 7),
        (("--data", tmp_path / "other", "--split", "extra"), "other-extra", 9),
        (("--data", tmp_path / "other" / "extra", "--overwrite"), "other-extra", 9),
    ):
        code, out, err = command(*run, *arguments)
        assert (code, err) == (0, "")
        assert f"--run {directory.root} --split {name}\n" in out
        found = EmbeddingSet.read(directory.embeddings(name))
        assert (len(found.images), found.split) == (images, name.removeprefix("other-"))
    code, out, err = evaluated(*run, "--split", "other-extra")
    assert (code, err) == (0, "")
    assert (directory.root / "report_other-extra.html").is_file()
    # What `--out` names is read by itself.
    code, out, _ = command(*run, "--data", tmp_path / "other", "--out", tmp_path / "e")
    assert code == 0
    told = re.search(r"measure: python -m retrieval_eval.evaluate (.*)\n", out).group(1).split()
    assert told == ["--embeddings", str(tmp_path / "e")]
    assert evaluated(*told)[0] == 0


def test_the_runs_own_data_by_their_folder(trained, command):
    config, directory = trained
    code, out, _ = command("--run", directory.root, "--data", config.data.root, "--split", "val")
    assert code == 0
    assert f"written: {directory.embeddings('val')}, 25 images" in out


def test_what_does_not_fit_the_run_is_one_line(trained, command, tmp_path, tiny_samples):
    _, directory = trained
    one = tmp_path / "one"
    for folder in ("one", "regions", "empty"):
        (tmp_path / folder).mkdir()
    write_split(one / "restval", tiny_samples(True)[:3], name="one", split="restval", source={})
    regions = [Sample(f"r{i}", "npy", npy(np.ones((2, 4), np.float32)), ["a word"]) for i in range(3)]
    write_split(tmp_path / "regions" / "test", regions, name="regions", split="test", source={}, kind="regions")
    before = sorted(directory.root.rglob("*"))
    for arguments, message in (
        (("--data", tmp_path / "on"), "did you mean 'one'?"),
        (("--data", tmp_path / "empty"), "holds no manifest.json: build it"),
        (
            ("--data", one, "--split", "restvall"),
            f"--split 'restvall': {one} has no such split; did you mean 'restval'?",
        ),
        (("--data", one / "restval", "--split", "test"), "is one split: restval; accepted: --data"),
        (("--data", tmp_path / "regions"), "holds regions data; the model of"),
        (("--split", "test"), f"--out {directory.embeddings('test')} exists already; give another, or --overwrite"),
        (("--split", "val", "--checkpoint", "last"), f"accepted: --out {directory.embeddings('val-last')}"),
    ):
        code, _, err = command("--run", directory.root, *arguments)
        assert code == 2, arguments
        assert message in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert sorted(directory.root.rglob("*")) == before
    assert command("--run", directory.root, "--data", one)[0] == 0  # the only split there is


def test_regions_of_another_size_are_one_line(tiny_config, command, tmp_path):
    def write(root, features):
        root.mkdir()
        for split in ("train", "val", "test"):
            samples = [
                Sample(f"r{i}", "npy", npy(np.full((2, features), i, np.float32)), [f"number {i}"]) for i in range(6)
            ]
            write_split(root / split, samples, name=root.name, split=split, source={}, kind="regions")
        return root

    model = {"dim": 8, "image": {"kind": "regions", "features": 4}, "text": {"kind": "gru", "embedding": 8}}
    sections = {"model": model, "train": {"epochs": 1, "global_batch": 6}}
    config = tiny_config("regions", data={"root": str(write(tmp_path / "four", 4))}, **sections)
    directory = set_up(config, resume=False)
    complete(Training(config, World.join(torch.device("cpu")), lambda _: None))
    assert command("--run", directory.root, "--split", "val")[0] == 0
    code, _, err = command("--run", directory.root, "--data", write(tmp_path / "five", 5))
    assert code == 2
    assert err == (
        f"error: {tmp_path / 'five' / 'test'}: region features must be [b, R, 4] with R ≥ 1, not [6, 2, 5]\n"
    )


def test_the_readmes_inference(trained, tiny_config, tiny_samples, tmp_path, monkeypatch):
    """Executed as it stands there, on files named there; its embeddings are those of the run's evaluation."""
    _, directory = trained
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "models.load" in block]
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) == 5
    folder = tmp_path / re.search(r'"([^"]+)/model"', code).group(1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(directory.root)
    names = re.findall(r'"([^"]+\.(?:png|jpg))"', code)
    held_out = tiny_samples(True)[: len(names)]
    for name, sample in zip(names, held_out, strict=True):
        (tmp_path / name).write_bytes(sample.data)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code.replace("side=64", "side=24"), found)
    evaluated = EmbeddingSet.read(directory.embeddings("test"))
    rows = [evaluated.image_keys.index(sample.key) for sample in held_out]
    np.testing.assert_allclose(found["images"].numpy(), evaluated.images[rows], atol=1e-5)
    scores = found["images"] @ found["texts"].T
    assert scores.shape == (2, 2)
    assert torch.equal(found["ranking"], scores.argsort(dim=1, descending=True))


def test_pictures_that_are_none_are_named(tmp_path, tiny_samples):
    (tmp_path / "good.png").write_bytes(tiny_samples(True)[0].data)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert read_images([tmp_path / "good.png", str(tmp_path / "good.png")], side=8).shape == (2, 3, 8, 8)
    assert read_images([], side=8).shape == (0, 3, 8, 8)
    for name, message in (("bad.png", "bad.png: undecodable image"), ("god.png", "did you mean 'good.png'?")):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            read_images([tmp_path / "good.png", tmp_path / name], side=8)
        assert "\n" not in str(caught.value)


def test_mistakes_are_one_line(trained, command, tmp_path):
    _, directory = trained
    out = ("--out", tmp_path / "x")
    for arguments, message in (
        (("--run", directory.root.parent / "smal", "--split", "val"), "did you mean 'small'"),
        (("--run", directory.root, "--split", "vall"), "did you mean 'val'"),
    ):
        code, _, err = command(*arguments, *out)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    (directory.checkpoints / "best").unlink()
    code, _, err = command("--run", directory.root, "--split", "val", *out)
    assert code == 2
    assert "'best'" in err
    assert not (tmp_path / "x").exists()


def test_nothing_that_is_there_is_deleted(trained, command, tmp_path):
    _, directory = trained
    arguments = ("--run", directory.root, "--split", "val", "--out")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for more in ((), ("--overwrite",)):
        code, _, err = command(*arguments, mine, *more)
        assert code == 2
        assert (
            err == f"error: {mine} exists and holds no embeddings: it is not replaced; give a folder of another name\n"
        )
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert command(*arguments, mine / "thesis.txt")[0] == 2
    assert (mine / "thesis.txt").is_file()

    out = mine / "val"
    assert command(*arguments, out)[0] == 0
    before = (out / "images.npy").stat().st_ino
    code, _, err = command(*arguments, out)
    assert code == 2
    assert err == f"error: --out {out} exists already; give another, or --overwrite to replace it\n"
    assert (out / "images.npy").stat().st_ino == before
    assert command(*arguments, out, "--overwrite")[0] == 0
    assert EmbeddingSet.read(out).split == "val"
    assert sorted(path.name for path in mine.iterdir()) == ["thesis.txt", "val"]


def test_a_file_is_not_what_embeddings_are(trained, command, tmp_path):
    code, _, err = command("--run", trained[1].root, "--split", "val", "--out", tmp_path / "val.safetensors")
    assert code == 2
    assert (
        err
        == f"error: --out {tmp_path / 'val.safetensors'}: embeddings are a folder; accepted: --out {tmp_path / 'val'}\n"
    )
    assert list(tmp_path.glob("val*")) == []
