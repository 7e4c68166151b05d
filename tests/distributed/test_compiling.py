"""torch.compile of the encoder: the plain run's losses and masks, resumed bit for bit, told, refused in one line."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from allpairs.errors import UserError
from distributed import compiling
from distributed.launch import set_up
from distributed.loop import Training
from distributed.world import Stopped, World
from retrieval_eval.run_files import read_rows
from tests.distributed.test_loop import assert_same_state, rows, train


@pytest.fixture
def config_of(tiny_config, regions):
    """Regions and captions without a network that takes long to compile; captions lose words by a draw of each step."""

    def make(name, **settings):
        data = {"root": str(regions), "test": None}
        model = {"image": {"kind": "regions", "features": 24}, "text": {"kind": "gru", "embedding": 16,
                 "word_dropout": 0.3}}  # fmt: skip
        train = {"epochs": 2, "global_batch": 25, "log_every": 1} | settings  # 66 images: a ragged last batch
        return tiny_config(name, data=data, model=model, train=train)

    return make


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Another encoder's code in this process is no part of a run."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_compiled_run_is_the_plain_one_and_resumes_bit_for_bit(config_of, monkeypatch):
    settings = {"micro_batch": 7, "ema_decay": 0.9}
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")  # graphs as inductor gets them, run by torch's own kernels
    plain, *_ = train(config_of("plain", **settings))
    torch._dynamo.utils.counters.clear()
    whole, *_ = train(config_of("whole", compile=True, **settings))
    assert 0 < compiled_graphs() <= 12
    assert rows(whole, "train/loss") == pytest.approx(rows(plain, "train/loss"), rel=1e-6)
    weights = [load_file(run.checkpoints / "last/model.safetensors") for run in (plain, whole)]
    assert weights[0].keys() == weights[1].keys()
    (said,) = (row["text"] for row in read_rows(whole.events) if "compile" in row.get("text", ""))
    assert "compiling the encoder" in said

    torch._dynamo.reset()
    train(config_of("part", compile=True, stop_after_epochs=1.3, **settings))
    torch._dynamo.reset()
    run, *_ = train(config_of("part", compile=True, **settings), resume=True)
    assert_same_state(run, whole)


def test_inductor_computes_the_same(config_of):
    plain, *_ = train(config_of("plain", epochs=1))
    torch._dynamo.utils.counters.clear()
    run, *_ = train(config_of("compiled", epochs=1, compile=True))
    assert 0 < compiled_graphs() <= 12
    assert torch._dynamo.utils.counters["inductor"]
    assert rows(run, "train/loss") == pytest.approx(rows(plain, "train/loss"), rel=1e-4)


def test_what_cannot_compile_is_one_line(config_of, monkeypatch):
    with pytest.raises(UserError, match=r"train.compile: fsdp2 .*accepted are false, or train.strategy=ddp"):
        config_of("sharded", compile=True, strategy="fsdp2")
    config = config_of("bare", compile=True)
    set_up(config, resume=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Stopped, match=r"^train.compile=true: torch.compile finds no C\+\+ compiler \(g\+\+\)"):
        Training(config, World.join(torch.device("cpu")), lambda metrics: None)
