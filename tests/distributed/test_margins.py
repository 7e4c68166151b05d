"""Adaptive margins as a user trains with them: `margins.source` column and sam, stopped and resumed, refused."""

import numpy as np
import pytest
import torch

from allpairs.errors import UserError
from distributed.data import open_dataset
from distributed.data.writer import Sample, write_split
from distributed.launch import set_up
from distributed.step import TrainStep
from tests.distributed.test_loop import assert_same_state, rows, train

UNIFIED = {"name": "unified", "margin": 0.15, "scale": 20}
SOURCES = {
    "column": {"source": "column", "column": "soft"},
    "sam": {"source": "sam", "temperature": 6, "weight": 2},
}


@pytest.fixture(scope="module")
def soft(tiny_samples, tmp_path_factory):
    """The tiny data, each caption with a margin of its own."""
    root = tmp_path_factory.mktemp("soft")
    for split in ("train", "val"):
        draw = np.random.default_rng(0)
        some = [
            Sample(s.key, s.suffix, s.data, s.captions, {"soft": draw.uniform(0, 1, len(s.captions)).tolist()})
            for s in tiny_samples(split != "train")
        ]
        source = {"margin_columns": ["soft"]}
        write_split(root / split, some, name="soft", split=split, source=source, shard_samples=40)
    return root


@pytest.fixture
def config_of(tiny_config, soft):
    def make(name, source, *, objective=UNIFIED, **settings):
        data = {"root": str(soft), "test": None}
        train = {"epochs": 2, "global_batch": 24, "log_every": 1} | settings
        return tiny_config(name, data=data, objective=objective, margins=SOURCES[source], train=train)

    return make


def smooth(scores, margins, scale=20.0):
    """U-Eq. 26 with the mean over each direction, one pair at a time."""
    count = len(scores)
    total = 0.0
    for one in (scores, scores.T):
        for i in range(count):
            terms = [np.exp(scale * (one[i, j] - one[i, i] + margins[i])) for j in range(count) if j != i]
            total += np.log1p(sum(terms)) / scale / count
    return total


@pytest.mark.parametrize("source", SOURCES)
def test_the_loss_is_the_written_out_one_and_a_resumed_run_is_the_whole_one(source, config_of, soft, monkeypatch):
    dataset = open_dataset(soft / "train")
    loss_of = TrainStep.loss
    steps = []

    def noted(self, images, captions, pairs):
        loss = loss_of(self, images, captions, pairs)
        sides = [torch.nn.functional.normalize(side.detach()).double() for side in (images, captions)]
        scores = (sides[0] @ sides[1].T).numpy()
        steps.append((float(loss.detach()), scores, pairs.image_ids_b.tolist(), pairs.margins_b.numpy()))
        return loss

    monkeypatch.setattr(TrainStep, "loss", noted)
    whole, *_ = train(config_of("whole", source))
    assert len(rows(whole, "train/loss")) == len(steps) == 10
    for loss, scores, ids, margins in steps[:1] + steps[-1:]:
        if source == "column":
            expected = smooth(scores, margins)
            both = [dataset.margins(row, "soft") for row in ids]
            assert all(np.isclose(margins[i], both[i], rtol=1e-6).any() for i in range(len(ids)))
        else:
            expected = smooth(scores, np.full(len(ids), 0.15)) + 2 * smooth(scores, margins)
        assert loss == pytest.approx(expected, rel=1e-5)
    if source == "sam":  # margins themselves are compared with their definition where the reader is tested
        assert all(margins.max() <= 1 and np.ptp(margins) > 0.05 for *_, margins in steps)

    part = config_of("part", source, stop_after_epochs=0.7)
    train(part)
    run, *_ = train(config_of("part", source), resume=True)
    assert_same_state(run, whole)


def test_what_cannot_be_is_one_line_before_anything_starts(config_of, tiny_config, tiny):
    takers = "accepted is objective, or objective.name=rsp|ssp|triplet|triplet_hn|unified"
    for objective in ("vlc", "goal", "circle"):
        with pytest.raises(
            UserError, match=rf"margins.source=sam: {objective} has no margin .*{takers}".replace("|", r"\|")
        ):
            config_of("x", "sam", objective={"name": objective})
    for margins, said in (
        ({"source": "column"}, "margins.column=None with margins.source=column: accepted is a name"),
        ({"source": "sam", "column": "soft"}, "margins.column='soft' with margins.source=sam: accepted is null"),
        ({"sorce": "sam"}, "margins.sorce: unknown key .*did you mean 'margins.source'"),
        ({"source": "sam", "temperature": 0}, "margins.temperature=0 is not accepted"),
    ):
        with pytest.raises(UserError, match=said) as error:
            tiny_config(objective=UNIFIED, margins=margins)
        assert "\n" not in str(error.value)
    config = tiny_config(objective=UNIFIED, margins=SOURCES["column"])
    with pytest.raises(UserError, match=r"margins.column=soft: .*train was not built with it: it has none .*build"):
        set_up(config, resume=False)
    assert not config.run_dir.exists()
