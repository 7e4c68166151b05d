import pytest
import torch

from allpairs.models import GruSpec
from allpairs.models.text import GruEncoder
from tests.allpairs.models.test_pooling import pooled

# A batch of three captions of 5, 2 and 3 tokens, padded with 0.
TOKENS = torch.tensor([[1, 5, 6, 7, 2], [1, 2, 0, 0, 0], [1, 9, 2, 0, 0]])
LENGTHS = torch.tensor([5, 2, 3])


def encoder(kind: str, **options) -> GruEncoder:
    torch.manual_seed(0)
    return GruEncoder(GruSpec(kind=kind, embedding=6, **options), dim=4, vocabulary_size=12).double().eval()


def states(gru: torch.nn.GRU, words: torch.Tensor) -> torch.Tensor:
    """Cho et al.'s recurrence written out for one caption: words [L, E] -> states [L, D]."""
    state = torch.zeros(gru.hidden_size, dtype=words.dtype)
    trace = []
    for word in words:
        from_word = gru.weight_ih_l0 @ word + gru.bias_ih_l0
        from_state = gru.weight_hh_l0 @ state + gru.bias_hh_l0
        reset, update, _ = (from_word + from_state).sigmoid().chunk(3)
        candidate = torch.tanh(from_word.chunk(3)[2] + reset * from_state.chunk(3)[2])
        state = (1 - update) * candidate + update * state
        trace.append(state)
    return torch.stack(trace)


def test_gru_returns_the_state_after_the_last_true_word():
    model = encoder("gru")
    vectors = model(TOKENS, LENGTHS)
    for row in range(3):
        words = model.words(TOKENS[row, : LENGTHS[row]])
        torch.testing.assert_close(vectors[row], states(model.forwards, words)[-1], rtol=0, atol=1e-12)


def test_bigru_returns_the_maximum_over_words_of_the_mean_of_both_readings():
    model = encoder("bigru")
    vectors = model(TOKENS, LENGTHS)
    for row in range(3):
        words = model.words(TOKENS[row, : LENGTHS[row]])
        both = (states(model.forwards, words) + states(model.backwards, words.flip(0)).flip(0)) / 2
        torch.testing.assert_close(vectors[row], both.amax(dim=0), rtol=0, atol=1e-12)


def test_generalised_pooling_takes_the_maximum_s_place():
    model = encoder("bigru", pool="gpo")
    vectors = model(TOKENS, LENGTHS)
    for row in range(3):
        words = model.words(TOKENS[row, : LENGTHS[row]])
        both = (states(model.forwards, words) + states(model.backwards, words.flip(0)).flip(0)) / 2
        torch.testing.assert_close(vectors[row], pooled(model.pool, list(both)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="with kind: gru accepted is auto"):
        GruSpec(kind="gru", pool="gpo")


@pytest.mark.parametrize("kind", ["gru", "bigru"])
def test_a_caption_does_not_depend_on_its_batch_mates(kind):
    model = encoder(kind, layers=2)
    together = model(TOKENS, LENGTHS)
    for row in range(3):
        alone = model(TOKENS[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gru", "bigru"])
def test_padding_gets_no_gradient(kind):
    model = encoder(kind)
    model(TOKENS, LENGTHS).sum().backward()
    used = model.words.weight.grad.abs().sum(dim=1) > 0
    assert used.nonzero().flatten().tolist() == [1, 2, 5, 6, 7, 9]


def test_word_dropout_hides_words_in_training_only():
    model = encoder("gru", word_dropout=0.5)
    expected = model(TOKENS, LENGTHS)
    assert torch.equal(model(TOKENS, LENGTHS), expected)
    seen = []
    model.words.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.train()
    tokens = torch.arange(4, 12).repeat(500, 1)
    model(tokens, torch.full((500,), 8))
    hidden = seen[0] == 3
    assert torch.equal(seen[0][~hidden], tokens[~hidden])
    assert abs(hidden.double().mean().item() - 0.5) < 4 * 0.5 / 4000**0.5  # four standard deviations of 4000 draws
