"""What a row of metrics says of the steps before it."""

import pytest
import torch

from distributed.interval import Interval
from distributed.step import Pairs, StepOutput
from distributed.world import World


def steps(*sizes):
    """An interval of steps of so many pairs, each pair alike by 1 / its step, with ten times the step as its loss."""
    interval = Interval(started=2.0)
    for step, rows in enumerate(sizes, start=1):
        images = torch.eye(rows, rows + 1)
        texts = images / step
        texts[:, -1] = (1 - 1 / step**2) ** 0.5
        ids = torch.arange(rows)
        pairs = Pairs(images, ids[:, None], torch.ones(rows), ids, ids)
        interval.add(
            10.0 * step, {"train/gradient_norm": float(step)}, rows, pairs, StepOutput(torch.tensor(0.0), images, texts)
        )
    return interval


@pytest.mark.parametrize(
    ("sizes", "loss", "batch", "last"),
    [
        ((8, 8, 8), 20.0, 8, 3),
        ((8, 8, 3), 15.0, 8, 2),  # an epoch's last batch has fewer negatives: it is not in the mean
        ((8, 9), 10.0, 8, 1),  # or more, where a tail joined it
        ((3,), 10.0, 3, 1),  # alone, with its size beside it
    ],
)
def test_loss_and_similarities_are_of_one_batch_size(sizes, loss, batch, last):
    row = steps(*sizes).measure(World.join(torch.device("cpu")), 4.0, {"read": 0.5, "encode": 1.25, "save": 9.0})
    assert (row["train/loss"], row["train/batch"]) == (loss, batch)
    assert row["train/positive_similarity"] == pytest.approx(1 / last)
    assert row["train/gradient_norm"] == len(sizes)
    assert row["train/samples_per_second"] == row["train/samples_per_second_per_worker"] == sum(sizes) / 2.0
    times = {key.removeprefix("train/ms_"): len(sizes) * row[key] for key in row if key.startswith("train/ms_")}
    assert times == pytest.approx({"read": 500, "encode": 1250, "save": 9000, "other": 250})
