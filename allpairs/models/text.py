"""Recurrent caption encoders.

Shape legend: b captions, L tokens (padded), E word vector, D hidden size.
"""

import torch
from torch import Tensor, nn

from allpairs.models.spec import GruSpec
from allpairs.models.vocabulary import PAD, UNKNOWN


class GruEncoder(nn.Module):
    """Token ids `[b, L]` with true lengths `[b]` → `[b, dim]`, not normalised; padding never changes a vector.

    "gru" returns the state after the last true token (VSE++, Faghri et al. 2018, section 3.1). "bigru" adds a second
    GRU that reads the caption backwards and returns the mean of the two final states, so the size stays `dim`.
    """

    def __init__(self, spec: GruSpec, dim: int, vocabulary_size: int) -> None:
        super().__init__()
        self.word_dropout = spec.word_dropout
        self.words = nn.Embedding(vocabulary_size, spec.embedding, padding_idx=PAD)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        with torch.no_grad():
            self.words.weight[PAD].zero_()
        self.forwards = nn.GRU(spec.embedding, dim, spec.layers, batch_first=True)
        self.backwards = nn.GRU(spec.embedding, dim, spec.layers, batch_first=True) if spec.kind == "bigru" else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode `tokens` int64 `[b, L]` of `lengths` int64 `[b]` (each from 1 to L) as `[b, dim]`."""
        if self.training and self.word_dropout:
            dropped_bL = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
            tokens = tokens.masked_fill(dropped_bL & (tokens != PAD), UNKNOWN)
        words_bLE = self.words(tokens)
        vector_bD = _final_state(self.forwards, words_bLE, lengths)
        if self.backwards is None:
            return vector_bD
        return (vector_bD + _final_state(self.backwards, _reverse(words_bLE, lengths), lengths)) / 2


def _final_state(gru: nn.GRU, words_bLE: Tensor, lengths: Tensor) -> Tensor:
    # The padding follows the caption, so a forward pass over all of L leaves the state at the true length untouched;
    # unlike a packed sequence this needs no copy of the lengths on the host.
    states_bLD, _ = gru(words_bLE)
    return states_bLD[torch.arange(len(lengths), device=lengths.device), lengths - 1]


def _reverse(words_bLE: Tensor, lengths: Tensor) -> Tensor:
    # Each caption backwards within its true length; what stands behind it is never read.
    position_L = torch.arange(words_bLE.shape[1], device=lengths.device)
    source_bL = (lengths[:, None] - 1 - position_L).clamp(min=0)
    return words_bLE.gather(1, source_bL[..., None].expand_as(words_bLE))
