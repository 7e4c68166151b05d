import time
from pathlib import Path

import pytest

from allpairs.errors import UserError
from allpairs.models import TextTransformersSpec, WholeSpec
from allpairs.objectives import arguments, names
from distributed.config import Config, dump, load, validate
from distributed.config.tree import Cluster
from distributed.launch import choose_device
from tune.config import load_search

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


def test_a_rate_for_the_networks_is_one_number_or_one_for_each_tower(file):
    both = load(file, ["optimizer.backbone_lr_factor=0.1"]).optimizer.backbone_lr_factor
    assert (both.image, both.text) == (0.1, 0.1)
    text = load(file, ["optimizer.backbone_lr_factor.text=0.1"]).optimizer.backbone_lr_factor
    assert (text.image, text.text) == (1.0, 0.1)


def test_swapping_the_image_side(file):
    config = load(file, ["model.image.kind=transformers", "model.image.name=resnet", "model.image.pretrained=false"])
    assert config.model.image.name == "resnet"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["objective={name: vlc, scale: 20}"], ("vlc", {"scale": 20.0})),
        (["objective={name: vlc}", "objective.scale=30"], ("vlc", {"scale": 30.0})),
        (["objective.scale=30", "objective={name: vlc}"], ("vlc", {"scale": 30.0})),  # a section, then its keys
        (["objective={margin: 0.1}"], ("unified", {"margin": 0.1})),  # nothing of the file's section stays
        (["objective={name: vlc}", "objective={name: triplet, margin: 0.1}"], ("triplet", {"margin": 0.1})),
    ],
)
def test_a_whole_section_takes_the_place_of_the_files(file, overrides, expected):
    config = load(file, overrides)
    assert (config.objective.name, config.objective.arguments()) == expected


def test_a_part_of_a_section_may_be_given_whole(file):
    config = load(file, ["model.image.width=8", "model.image={kind: cnn, blocks: 2}", "model.dim=16"])
    assert (config.model.image.width, config.model.image.blocks, config.model.dim) == (8, 2, 16)


def test_swapping_the_whole_model(file):
    config = load(file, ["model.kind=transformers", "model.name=clip", "model.pretrained=false", "model.head=8"])
    assert config.model == WholeSpec(name="clip", pretrained=False, head=8)
    text = load(file, ["model.text.kind=transformers", "model.text.name=bert-base-uncased"]).model.text
    assert text == TextTransformersSpec(name="bert-base-uncased")


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
        ("objetive.name=vlc", "objetive: unknown key (value {'name': 'vlc'}); did you mean 'objective'?"),
        ("trian.epochs=3", "trian: unknown key (value {'epochs': 3}); did you mean 'train'?"),
        ("margin.source=sam", "margin: unknown key (value {'source': 'sam'}); did you mean 'margins'?"),
        ("margin={source: sam}", "expected section.key=value; did you mean 'margins'?"),
        ("margin=0.2", "expected section.key=value; did you mean 'objective.margin'?"),
        ("model.image.widht=3", "model.image.widht: unknown key (value 3); did you mean 'model.image.width'?"),
        ("model.image.width=3000", "model.image: width is 3000; accepted: an integer from 4 to 512"),
        ("model.image.kind=vit", "model.image.kind='vit' is unknown; accepted: 'cnn', 'transformers', 'regions'"),
        ("model.kind=transformer", "model.kind='transformer' is unknown; accepted: 'towers', 'transformers'"),
        ("model.text.kind=bert", "model.text.kind='bert' is unknown; accepted: 'gru', 'bigru', 'transformers'"),
        (
            "model={kind: transformers, name: clip, frezee: all}",
            "model.frezee: unknown key (value 'all'); did you mean",
        ),
        (
            "model={kind: transformers, name: clip, freeze: all}",
            "model: freeze: all leaves nothing to train; it needs he",
        ),
        ("model.text.embeding=4", "model.text.embeding: unknown key (value 4); did you mean 'model.text.embedding'?"),
        (
            "run.dir=s3://bucket/runs",
            "s3:// is not read or written; accepted is a path that every node mounts, e.g. /mnt/",
        ),
        (
            "data.root=file:///data",
            "file:// is not read or written; accepted is a path that every node mounts, e.g. /data",
        ),
        (
            "optimizer.backbone_lr_factor=slow",
            "optimizer.backbone_lr_factor='slow' is not accepted: accepted is a number, or {image: number,",
        ),
        (
            "optimizer.backbone_lr_factor={txt: 0.1}",
            "factor.txt: unknown key (value 0.1); did you mean 'optimizer.backbone_lr_factor.text'?",
        ),
        ("objective.name=unifed", "objective.name='unifed' is unknown; did you mean 'unified'?"),
        ("objective.marginn=1", "objective.marginn: unified has no such argument (value 1); did you mean 'margin'?"),
        ("objective.margin=wide", "objective.margin='wide' is not accepted: input should be a valid number"),
        ("objective.scale=-1", "objective: scale=-1.0 is impossible; accepted: a finite number above 0"),
        ("data.captions_per_image=5", "data.captions_per_image=5: unified matches one caption with one image"),
        (
            "train.triplet_warmup_epochs=1",
            "train.triplet_warmup_epochs=1: unified needs no such warm-up; accepted is 0, or an objective of the",
        ),
        ("train.epochs=0", "train.epochs=0 is not accepted: input should be greater than or equal to 1"),
        ("train.epochs=many", "train.epochs='many' is not accepted: input should be a valid integer"),
        ("train.precision=fp8", "train.precision='fp8' is not accepted: input should be 'fp32' or 'bf16'"),
        ("train.global_batch=1", "train.global_batch=1 is not accepted: input should be greater than or equal to 2"),
        ("optimizer.betas=[0.9, 1.2]", "optimizer.betas=[0.9, 1.2] is not accepted: each must be at least 0"),
        ("cluster.workers=40", "train.global_batch=64 is too small for cluster.workers=40"),
        ("run.name=a/b", "run.name='a/b' is not accepted"),
        ("lr=3", "override 'lr=3': expected section.key=value; did you mean 'optimizer.lr'?"),
        (
            "objective=vlc",
            "objective='vlc': objective is a section; accepted: objective={...}, or a key of it (objective.",
        ),
        ("modle={dim: 3}", "override 'modle={dim: 3}': expected section.key=value; did you mean 'model'?"),
        ("objective={name: vlc, scal: 3}", "objective.scal: vlc has no such argument (value 3); did you mean 'scale'?"),
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
    [
        ("a: [", r"bad\.yaml, line 1, column 5: not valid YAML: expected the node content"),
        ("- 1", "expected a mapping of sections, found list"),
        ("", "found NoneType"),
        ("train: {1: 2}", "train.1"),
        (b"run: {name: \xff}", "byte 13 is not UTF-8"),
        ("#" * 2**20 + "\n", "larger than 1,048,576 bytes"),
        ("run: !!python/object/apply:os.abort []", "could not determine a constructor"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        load(path)


def bomb(form: str) -> str:
    """Ten lines that stand for two billion values."""
    lines = ["a0: &n0 {z: 1}"]
    lines += [f"a{i + 1}: &n{i + 1} {form.format(', '.join([f'*n{i}'] * 9))}" for i in range(10)]
    return "{" + ", ".join(lines) + "}"


# Each of them is a value of the command line, a line of a run's file and one of a search's.
YAML_WITHOUT_BOUNDS = [
    ("9" * 5000, r"99'… \(5,000 characters\) is an integer beyond 64 bits"),
    ("1:" * 400 + "1", "is an integer beyond 64 bits"),
    ("-9223372036854775809", "is an integer beyond 64 bits"),
    ("[" * 5000, "nested deeper than 40 levels"),
    ("{a: " * 5000, "nested deeper than 40 levels"),
    (bomb("[{}]"), "more than 50,000 values once its aliases are written out"),
    (bomb("{{<<: [{}]}}"), "more than 50,000 values once its aliases are written out"),
    ("&a [*a]", "contains itself"),
    ("{epochs: 1, seed: 1, epochs: 2}", "epochs stands twice, in line \\d"),
    ("!!int x", "'x' is no int"),
    ("!!timestamp x", "'x' is no timestamp"),
]


@pytest.mark.parametrize(("value", "message"), YAML_WITHOUT_BOUNDS, ids=range(len(YAML_WITHOUT_BOUNDS)))
def test_yaml_without_bounds_is_one_line_wherever_it_stands(file, tmp_path, value, message):
    bad, search = tmp_path / "bad.yaml", tmp_path / "search.yaml"
    bad.write_text(f"{YAML.replace('train: {global_batch: 64}', '')}\ntrain: {value}\n")
    search.write_text(f"name: s\nbase: {file}\nspace: {{train.seed: {{grid: [0]}}}}\n")
    started = time.monotonic()
    for call in (
        lambda: load(bad),
        lambda: load_search(bad),
        lambda: load(file, [f"train={value}"]),
        lambda: load_search(search, [f"train={value}"]),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20  # the bombs never ended


def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("run: {name: x}\ntrain:\n  epochs: 3\n  seed: 1\n  epochs: 4\n")
    with pytest.raises(UserError, match=r"twice\.yaml: train\.epochs stands twice, in lines 3 and 5"):
        load(path)


def test_aliases_and_merges_are_yaml_and_dates_are_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "run: {name: &name 2026-11-25}\ntracking: {group: *name, tags: [a, b]}\n"
        "train: {<<: {epochs: 3, seed: 4}, seed: 5}\n"
    )
    config = load(path)
    assert (config.run.name, config.tracking.group, config.tracking.tags) == ("2026-11-25", "2026-11-25", ("a", "b"))
    assert (config.train.epochs, config.train.seed) == (3, 5)


def number_keys() -> list[tuple[str, str]]:
    """Every key that takes a number with a point, with what else it needs to be there."""
    found = [("model.image={kind: transformers, name: vit, pretrained: false, config: {dropout: VALUE}}", "")]
    for name in ("optimizer", "train", "eval", "data", "cluster", "tracking"):
        for key, field in Config.model_fields[name].annotation.model_fields.items():
            if "float" in str(field.annotation):
                pair = "tuple" in str(field.annotation)
                found.append((f"{name}.{key}={'[0.9, VALUE]' if pair else 'VALUE'}", ""))
    for name in names():
        for key, argument in arguments(name).items():
            if argument.annotation is float:
                found.append((f"objective.{key}=VALUE", f"objective.name={name}"))
    return found


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "nan", "1.0e+999"])
def test_every_number_is_finite(file, value):
    keys = number_keys()
    assert len(keys) > 30
    for override, other in keys:
        if "config:" in override and value in ("inf", "nan"):
            continue  # text, where any value is taken
        with pytest.raises(UserError) as caught:
            load(file, [override.replace("VALUE", value), *([other] if other else [])])
        assert override.partition("=")[0].rpartition(".")[2] in str(caught.value), override
        assert "\n" not in str(caught.value)


def test_a_long_value_is_told_briefly(file):
    with pytest.raises(UserError) as caught:
        load(file, [f"train.epochs={'x' * 100_000}"])
    assert "(100,002 characters)" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_name_that_no_file_system_takes(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        load(tmp_path / ("x" * 300))


def test_a_missing_file_names_its_nearest_neighbour(file):
    with pytest.raises(UserError, match=r"no such config file; did you mean '.*run\.yaml'"):
        load(file.with_name("runn.yaml"))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_ours_loads(path):
    assert load(path).run.name


@pytest.mark.parametrize(
    ("device", "gpus", "uses", "note"),
    [
        ("auto", 2, True, None),
        ("gpu", 1, True, None),
        ("cpu", 4, False, None),
        (
            "auto",
            1,
            False,
            "cluster.device=auto: 1 GPU(s) for 2 workers on this Ray cluster, so this run computes on CPUs",
        ),
        ("auto", 0, False, "cluster.device=auto: no GPU on this Ray cluster, so this run computes on CPUs"),
    ],
)
def test_a_run_that_falls_back_to_cpus_says_why(device, gpus, uses, note):
    assert choose_device(Cluster(workers=2, device=device), gpus) == (uses, note)
    with pytest.raises(UserError, match="this Ray cluster has no GPU"):
        choose_device(Cluster(device="gpu"), 0)


def test_an_epoch_over_captions_takes_one_caption_a_place():
    tree = {"run": {"name": "r"}, "objective": {"name": "circle"}}
    with pytest.raises(UserError, match=r"captions_per_image=2: .*accepted is 1, or data\.epoch_unit=images"):
        validate(tree | {"data": {"epoch_unit": "captions", "captions_per_image": 2}})
