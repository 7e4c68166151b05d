"""Losses, labels and margins of pairs against what the definitions say, written out."""

import math

import numpy as np
import pytest
import torch

from distributed.ncr.division import LEFT_OUT, Division, batches_of, judge, pair_losses


@pytest.mark.parametrize("texts", [None, torch.tensor([7, 1, 7, 3, 4, 1, 7])])
def test_a_loss_is_the_mean_hinge_over_the_batch_in_both_directions(texts):
    torch.manual_seed(0)
    images, captions = (torch.nn.functional.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    ids = torch.tensor([0, 1, 2, 2, 3, 4, 5])  # the third and fourth are captions of one image
    images[3] = images[2]
    found = pair_losses(images, captions, ids, 0.2, texts)
    for i in range(7):
        hinges = 0.0
        for j in range(7):
            if ids[i] != ids[j] and (texts is None or texts[i] != texts[j]):
                own = float(images[i] @ captions[i])
                hinges += max(0.0, 0.2 + float(images[i] @ captions[j]) - own)
                hinges += max(0.0, 0.2 + float(images[j] @ captions[i]) - own)
        assert found[i] == pytest.approx(hinges / 7, abs=1e-6)


def test_long_batches_are_compared_in_parts(monkeypatch):
    torch.manual_seed(1)
    images, captions = (torch.nn.functional.normalize(torch.randn(11, 4), dim=1) for _ in range(2))
    whole = pair_losses(images, captions, torch.arange(11), 0.3)
    monkeypatch.setattr("distributed.ncr.division._ROWS", 4)
    torch.testing.assert_close(pair_losses(images, captions, torch.arange(11), 0.3), whole)


def test_a_prediction_is_relative_to_the_best_tenth_of_the_batch():
    torch.manual_seed(2)
    # 24 images, of which the last two have one caption more
    rows = torch.tensor([*range(24), 22, 23])
    images = torch.nn.functional.normalize(torch.randn(24, 16), dim=1)
    captions = torch.nn.functional.normalize(images[rows] + torch.rand(26, 1) * torch.randn(26, 16), dim=1)
    batches = [np.arange(26)[::-1][:13], np.arange(26)[::-1][13:]]
    losses, predictions = judge(images, captions, rows, [batch.copy() for batch in batches], 0.2)
    for batch in batches:
        kept = [max(0.0, 0.2 - float(losses[place]) / 2) for place in batch]
        best = sorted(kept)[-2:]  # 13 // 10 + 1
        for place, p in zip(batch, kept, strict=True):
            assert predictions[place] == pytest.approx(min(1.0, p / (sum(best) / 2)), abs=1e-5)
    assert predictions.max() == 1
    assert predictions.min() < 0.9


def test_nothing_is_predicted_where_every_hinge_is_wide_open():
    images = torch.eye(4)
    captions = images.roll(1, 0)  # each image's own caption is another's
    losses, predictions = judge(images, captions, torch.arange(4), [np.arange(4)], 0.1)
    assert (losses / 2 > 0.1).all()
    assert predictions.tolist() == [0, 0, 0, 0]


def test_each_net_is_trained_with_the_others_division():
    # Net A finds pairs 6 and 7 broken, net B pairs 4 and 5.
    losses = torch.tensor([[0.1, 0.1]] * 4 + [[0.1, 0.9]] * 2 + [[0.9, 0.1]] * 2)
    predictions = torch.linspace(0, 0.7, 16).reshape(8, 2)
    division = Division.of_nets(losses, predictions, 0.5)
    assert (division.posteriors > 0.5).T.tolist() == [[True] * 6 + [False] * 2, [True] * 4 + [False] * 2 + [True] * 2]
    assert division.noisy.T.tolist() == [[False] * 4 + [True] * 2 + [False] * 2, [False] * 6 + [True] * 2]
    for pair in range(8):
        for net in (0, 1):
            w = float(division.posteriors[pair, 1 - net])
            if division.noisy[pair, net]:
                label = float(predictions[pair].mean())
            else:
                label = w + (1 - w) * float(predictions[pair, net])
            assert division.labels[pair, net] == pytest.approx(label, abs=1e-6)


def test_margins_grow_with_the_label_from_nothing_to_the_whole():
    labels = torch.tensor([[0.0, 1.0], [0.5, 0.25], [0.9, 0.1]])
    noisy = torch.tensor([[True, False], [False, False], [False, True]])
    division = Division(torch.rand(3, 2), labels, noisy)
    soft = division.margins(0.2, with_noisy=True)
    assert soft.flatten().tolist() == pytest.approx(
        [0.2 * (math.pow(10, y) - 1) / 9 for y in labels.flatten().tolist()], abs=1e-7
    )
    assert soft[0].tolist() == pytest.approx([0, 0.2])
    without = division.margins(0.2, with_noisy=False)
    assert torch.equal(without == LEFT_OUT, noisy)
    assert torch.equal(without[~noisy], soft[~noisy])


def test_left_out_pairs_lose_nothing_and_get_no_gradient():
    from allpairs.objectives import make

    torch.manual_seed(3)
    images, captions = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    weights = make("triplet_hn").pair_weights(images.detach(), captions, margins=torch.full((6,), LEFT_OUT))
    assert not weights.any()
    assert make("triplet_hn")(images, captions, margins=torch.full((6,), LEFT_OUT)) == 0


def test_equal_losses_are_all_clean():
    division = Division.of_nets(torch.full((5, 2), 0.3), torch.zeros(5, 2), 0.5)
    assert not division.noisy.any()
    assert (division.labels == 1).all()
    assert len(division.called_noisy(0.5)) == 0


def test_those_called_noisy_come_with_the_least_match_first():
    posteriors = torch.tensor([[0.9, 0.8], [0.2, 0.4], [0.6, 0.4], [0.0, 0.1]])
    division = Division(posteriors, posteriors, posteriors < 0.5)
    assert division.called_noisy(0.5).tolist() == [3, 1, 2]


def test_batches_hold_every_pair_once_in_an_order_of_their_epoch():
    batches = batches_of(103, 22, seed=0, epoch=3)
    assert [len(batch) for batch in batches] == [22, 22, 22, 22, 15]
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))
    other = batches_of(103, 22, seed=0, epoch=4)
    assert not np.array_equal(batches[0], other[0])
