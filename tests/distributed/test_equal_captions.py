"""A run over images that share captions: as negatives of each other, and masked; what is told of them."""

import io

import numpy as np
import pytest
import torch

from distributed.data.writer import Sample, write_split
from distributed.finish import complete
from distributed.launch import Result, set_up
from distributed.loop import Training
from distributed.step import TrainStep
from distributed.summary import summary_lines
from distributed.world import World


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """18 images whose captions are those of two others each, 6 to validate on."""
    root = tmp_path_factory.mktemp("alike")
    draw = np.random.default_rng(0)
    for split, count in (("train", 18), ("val", 6)):
        samples = []
        for number in range(count):
            buffer = io.BytesIO()
            np.save(buffer, draw.normal(size=(3, 24)).astype(np.float32))
            samples.append(Sample(f"item-{number}", "npy", buffer.getvalue(), [f"word{number // 3}", f"mine{number}"]))
        write_split(root / split, samples, name="alike", split=split, source={}, kind="regions")
    return root


def vlc(S, own, negative):
    """Mean over both directions' anchors of log(1 + Σ_N e^{10(s − d)})."""
    excess = (10 * (S - S.diagonal()[:, None])).exp() * negative, (10 * (S - S.diagonal())).exp() * negative
    return excess[0].sum(dim=1).log1p().mean() + excess[1].sum(dim=0).log1p().mean()


def lifted(S, own, negative):
    """Mean over both directions' anchors of log Σ_P e^{−2s} + log Σ_N e^{40s}/20."""
    pull, push = (-2 * S).exp() * own, (40 * S).exp() * negative
    return sum((pull.sum(dim).log() + push.sum(dim).log() / 20).mean() for dim in (0, 1))


@pytest.mark.parametrize(
    ("name", "equal", "micro"),
    [("vlc", "negatives", None), ("vlc", "masked", None), ("vlc", "masked", 5), ("lifted", "masked", 5)],
)
def test_a_run_masks_what_it_is_told_to(tiny_config, alike, monkeypatch, *, name, equal, micro):
    sets = name == "lifted"
    seen = []
    plain = TrainStep.loss

    def noted(self, images, texts, pairs):
        value = plain(self, images, texts, pairs)
        seen.append((images.detach().double(), texts.detach().double(), pairs, value.item()))
        return value

    monkeypatch.setattr(TrainStep, "loss", noted)
    config = tiny_config(
        data={"root": str(alike), "test": None, "equal_captions": equal, "captions_per_image": 2 if sets else 1},
        model={"image": {"kind": "regions", "features": 24}, "text": {"kind": "gru", "embedding": 16}},
        objective={"name": "lifted"} if sets else {"name": "vlc", "scale": 10.0},
        train={"epochs": 1, "global_batch": 18, "log_every": 1, "micro_batch": micro},
    )
    run = set_up(config, resume=False)
    summary = complete(Training(config, World.join(torch.device("cpu")), lambda metrics: None))

    ((images, texts, pairs, value),) = seen
    says = [tuple(tokens) for tokens in pairs.tokens_cL.tolist()]
    own = pairs.image_ids_b[:, None] == pairs.caption_ids_c
    right = [[any(says[k] == text for k in row.nonzero().flatten().tolist()) for text in says] for row in own]
    negative = ~own if equal == "negatives" else ~torch.tensor(right)
    assert (negative.sum() < (~own).sum()) == (equal == "masked")
    expected = (lifted if sets else vlc)(images @ texts.T, own, negative)
    assert value == pytest.approx(expected.item(), rel=1e-5)

    assert (summary["train/shared_captions/texts"], summary["train/shared_captions/images"]) == (6, 18)
    result = Result(run.history()[-1] | summary, run.root, finished=True, step=1)
    assert "same words   6 texts of train, each of several images: 18 in all (data.equal_capt" in summary_lines(
        result, 1
    )
    how = "negatives of each other" if equal == "negatives" else "masked in training"
    assert f"6 texts of train, each of several images: 18 in all; {how}" in run.report.read_text()
