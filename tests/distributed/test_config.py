from pathlib import Path

import pytest

from allpairs.errors import UserError
from distributed.config import dump, load, validate

YAML = """
run: {name: x}
model: {dim: 32, image: {kind: cnn}, text: {kind: gru}}
objective: {name: unified, margin: 0.3, scale: 40}
train: {global_batch: 64}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return path


def test_overrides_apply_in_order_over_the_file(file):
    config = load(file, ["optimizer.lr=3e-4", "objective.margin=0.1", "objective.margin=0.25", "data.test=null"])
    assert (config.optimizer.lr, config.objective.arguments()) == (3e-4, {"margin": 0.25, "scale": 40.0})
    assert config.data.test is None
    assert config.train.global_batch == 64


def test_swapping_the_objective_starts_its_arguments_afresh(file):
    # Margins mean nothing to VLC; the order in which name and arguments are given does not matter.
    for overrides in (["objective.name=vlc", "objective.scale=15"], ["objective.scale=15", "objective.name=vlc"]):
        assert load(file, overrides).objective.arguments() == {"scale": 15.0}
    assert load(file, ["objective.name=unified"]).objective.arguments() == {"margin": 0.3, "scale": 40.0}


def test_swapping_the_image_side(file):
    config = load(file, ["model.image.kind=transformers", "model.image.name=resnet", "model.image.pretrained=false"])
    assert config.model.image.name == "resnet"


def test_the_dump_reads_back_to_the_same_tree(file, tmp_path):
    config = load(file, ["optimizer.decay_epochs=[3, 5]", "objective.name=vlc", "objective.learn_scale=true"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load(again) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown key (value 1); did you mean 'optimizer.lr'?"),
        ("train.lr=3", "train.lr: unknown key (value 3); did you mean 'optimizer.lr'?"),
        ("trian.epochs=3", "trian: unknown key (value {'epochs': 3}); did you mean 'train'?"),
        ("model.image.widht=3", "model.image.widht: unknown key (value 3); did you mean 'model.image.width'?"),
        ("model.image.width=3000", "model.image: width is 3000; accepted: an integer from 4 to 512"),
        ("model.image.kind=vit", "model.image.kind='vit' is unknown; accepted: 'cnn', 'transformers', 'regions'"),
        ("model.text.embeding=4", "model.text.embeding: unknown key (value 4); did you mean 'model.text.embedding'?"),
        (
            "run.dir=s3://bucket/runs",
            "s3:// is not read or written; accepted is a path that every node mounts, e.g. /mnt/",
        ),
        (
            "data.root=file:///data",
            "file:// is not read or written; accepted is a path that every node mounts, e.g. /data",
        ),
        ("objective.name=unifed", "objective.name='unifed' is unknown; did you mean 'unified'?"),
        ("objective.marginn=1", "objective.marginn: unified has no such argument (value 1); did you mean 'margin'?"),
        ("objective.margin=wide", "objective.margin='wide' is not accepted: input should be a valid number"),
        ("objective.scale=-1", "objective: scale=-1.0 is impossible; accepted: a finite number above 0"),
        ("data.captions_per_image=5", "data.captions_per_image=5: unified matches one caption with one image"),
        (
            "train.triplet_warmup_epochs=1",
            "train.triplet_warmup_epochs=1: unified needs no such warm-up; accepted is 0",
        ),
        ("train.epochs=0", "train.epochs=0 is not accepted: input should be greater than or equal to 1"),
        ("train.epochs=many", "train.epochs='many' is not accepted: input should be a valid integer"),
        ("train.precision=fp8", "train.precision='fp8' is not accepted: input should be 'fp32' or 'bf16'"),
        ("train.global_batch=1", "train.global_batch=1 is not accepted: input should be greater than or equal to 2"),
        ("optimizer.betas=[0.9, 1.2]", "optimizer.betas=[0.9, 1.2] is not accepted: each must be at least 0"),
        ("cluster.workers=40", "train.global_batch=64 is too small for cluster.workers=40"),
        ("run.name=a/b", "run.name='a/b' is not accepted"),
        ("lr=3", "override 'lr=3': expected section.key=value; did you mean 'optimizer.lr'?"),
        ("train.epochs.x=1", "override train.epochs.x: 'epochs' is a value, not a section"),
        ("--config", "override '--config': expected section.key=value"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_nearest(file, override, message):
    first = ["train.epochs=3"] if override == "train.epochs.x=1" else []
    with pytest.raises(UserError) as caught:
        load(file, [*first, override])
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


def test_every_mistake_gets_its_line(file):
    with pytest.raises(UserError) as caught:
        load(file, ["train.epochs=0", "optimizer.lr=-1"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "train.epochs" in str(lines)
    assert "optimizer.lr" in str(lines)


def test_a_missing_name_is_said(tmp_path):
    with pytest.raises(UserError, match=r"run: missing"):
        validate({"train": {}})


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not valid YAML"), ("- 1", "expected a mapping of sections, found list"), ("", "found NoneType")],
)
def test_files_that_are_no_configuration(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load(path)


def test_a_missing_file_names_its_nearest_neighbour(file):
    with pytest.raises(UserError, match=r"no such config file; did you mean '.*run\.yaml'"):
        load(file.with_name("runn.yaml"))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_ours_loads(path):
    assert load(path).run.name
