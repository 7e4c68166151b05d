"""`train.deepspeed`: a user's JSON beside our keys, each contradiction in one line, the rest passed on."""

import json
import sys

import pytest

from allpairs.errors import UserError
from distributed.config import load, validate
from distributed.config.deepspeed import KEYS, ZERO_KEYS, merged, unknown_settings
from distributed.launch import set_up

TREE = {"run": {"name": "x"}, "optimizer": {"clip_norm": 2.0}, "cluster": {"workers": 2}}
TRAIN = {"strategy": "deepspeed", "zero_stage": 2, "global_batch": 64}

FROM_TRANSFORMERS = {
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "reduce_bucket_size": "auto",
        "allgather_bucket_size": 1000,
        "overlap_comm": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
"""As their documentation has it."""


def config(settings, **train):
    return validate(TREE | {"train": TRAIN | train | {"deepspeed": settings}})


def test_settings_of_a_file_are_read_once_and_merged_into_ours(tmp_path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(FROM_TRANSFORMERS))
    found = config(str(path)).train.deepspeed
    assert found == FROM_TRANSFORMERS == config(FROM_TRANSFORMERS).train.deepspeed
    (tmp_path / "run.yaml").write_text(json.dumps(TREE | {"train": TRAIN}))
    assert load(tmp_path / "run.yaml", [f"train.deepspeed={path}"]).train.deepspeed == found
    ours = {"steps_per_print": 9, "zero_optimization": {"stage": 2, "reduce_bucket_size": 7}}
    assert merged(found, ours) == {
        "steps_per_print": 9,
        "zero_optimization": {
            "stage": 2, "reduce_bucket_size": 7, "allgather_bucket_size": 1000, "overlap_comm": True
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"gradient_clipping": 1.0}, r"gradient_clipping=1\.0, but optimizer\.clip_norm=2\.0; accepted: the same"),
        ({"train_batch_size": 32}, r"train_batch_size=32, but train\.global_batch=64;"),
        ({"train_micro_batch_size_per_gpu": 8}, r"gpu=8, but train\.global_batch / cluster\.workers=32;"),
        ({"gradient_accumulation_steps": 4}, r"gradient_accumulation_steps=4, but .* train\.micro_batch .*=1;"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled=True, but train\.precision=fp32, bf16\.enabled=False;"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled=True, but train\.precision=fp32, fp16\.enabled=False;"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage=3, but train\.zero_stage=2;"),
        ({"optimizer": {"type": "Lamb"}}, r"optimizer\.type='Lamb', but the optimiser of allpairs='AdamW';"),
        ({"optimizer": {"params": {"lr": 0.5}}}, r"params\.lr=0\.5, but optimizer\.lr=0\.001;"),
        ({"optimizer": {"params": {"momentum": 0.5}}}, r"momentum=0\.5, but the section optimizer decides, .*leave it"),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler\.type='WarmupLR', but optimizer\.schedule='cosine';"),
        ({"zero_optimization": {"reduce_bucket_sise": 1}}, r"unknown key; did you mean 'reduce_bucket_size'"),
        ({"zero_optimisation": {"stage": 2}}, r"zero_optimisation: unknown key; did you mean 'zero_optimization'\?"),
        ({"steps_per_prin": 1}, r"steps_per_prin: unknown key; did you mean 'steps_per_print'\?"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            r"offload_optimizer\.device='nvme': checkpoints could not hold what lies there; accepted: cpu, none",
        ),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_places_and_values(settings, line) -> None:
    with pytest.raises(UserError, match=line) as caught:
        config(settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config: train.deepspeed: ")


def test_what_cannot_be_read_or_used_is_said(tmp_path) -> None:
    (tmp_path / "zero.json").write_text("{]", encoding="utf-8")
    for settings, line in (
        (str(tmp_path / "zera.json"), r"train\.deepspeed=.*zera\.json does not exist.*'zero\.json'"),
        (str(tmp_path / "zero.json"), r"train\.deepspeed=.*zero\.json, line 1, column 2: not JSON"),
    ):
        with pytest.raises(UserError, match=line):
            config(settings)
    with pytest.raises(UserError, match=r"train\.deepspeed is set, but train\.strategy=fsdp2; accepted is null, or"):
        config({"steps_per_print": 1}, strategy="fsdp2")
    settings = {"nebula": {"enabled": False}, "wandb": {"enabled": False}}
    (line,) = unknown_settings(config(settings).train.deepspeed)
    assert line == "train.deepspeed: 'nebula' is no setting that training here knows, and is passed on"


def test_a_missing_deepspeed_is_said_before_anything_starts(tiny_config, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    settings = tiny_config("missing", train={"strategy": "deepspeed"})
    with pytest.raises(UserError, match=r"^train\.strategy=deepspeed: DeepSpeed is not installed; pip install"):
        set_up(settings, resume=False)
    assert not settings.run_dir.exists()


def test_the_names_are_those_of_the_installed_deepspeed() -> None:
    from deepspeed.runtime import config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()} == set(ZERO_KEYS)
    assert {value for name, value in vars(config).items() if name in _NAMED} <= set(KEYS)


_NAMED = ("TRAIN_BATCH_SIZE", "GRADIENT_CLIPPING", "OPTIMIZER", "SCHEDULER", "STEPS_PER_PRINT", "GRADIENT_ALLREDUCE_OP",
          "MANAGED_GRADIENT_ACCUMULATION", "ZERO_FORCE_DS_CPU_OPTIMIZER", "DATA_TYPES", "CHECKPOINT")  # fmt: skip
