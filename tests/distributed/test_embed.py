"""``python -m distributed.embed``: a split's embeddings under a checkpoint, ready for the analysis of objectives."""

import importlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allpairs import models
from allpairs.command import run as run_command
from allpairs.embeddings import EmbeddingSet
from distributed.data import open_dataset
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
def command(capsys):
    """Run the command inside this process, up to its exit."""
    app = importlib.import_module("distributed.embed").app

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            run_command(app, [str(argument) for argument in arguments])
        output = capsys.readouterr()
        return exit_.value.code, output.out, output.err

    return call


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
