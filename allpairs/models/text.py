"""Recurrent caption encoders.

Shape legend: b captions, L tokens (padded), E word vector, D hidden size.
"""

import torch
from torch import Tensor, nn

from allpairs.models.pooling import GeneralizedPooling, behind, reverse
from allpairs.models.spec import GruSpec
from allpairs.models.vocabulary import PAD, UNKNOWN


class GruEncoder(nn.Module):
    """Token ids `[b, L]` with true lengths `[b]` → `[b, dim]`, not normalised; padding never changes a vector.

    "gru" returns the state after the last true token (VSE++, Faghri et al. 2018, section 3.1). "bigru" adds a second
    GRU that reads the caption backwards, takes the mean of both directions at every word (as SCAN, Lee et al. 2018)
    and then the maximum over words, so that a caption's rare word counts wherever it stands; with `pool: gpo` VSE∞'s
    pooling takes the maximum's place (Chen et al. 2021, their BiGRU rows).
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
        self.pool = GeneralizedPooling() if spec.pool == "gpo" else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode `tokens` int64 `[b, L]` of `lengths` int64 `[b]` (each from 1 to L) as `[b, dim]`."""
        if self.training and self.word_dropout:
            dropped_bL = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
            tokens = tokens.masked_fill(dropped_bL & (tokens != PAD), UNKNOWN)
        words_bLE = self.words(tokens)
        # Padding follows the caption, so the states at its true words are those of the caption alone; unlike packed
        # sequences this needs no copy of the lengths on the host.
        states_bLD, _ = self.forwards(words_bLE)
        if self.backwards is None:
            return states_bLD[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        backward_bLD, _ = self.backwards(reverse(words_bLE, lengths))
        states_bLD = (states_bLD + reverse(backward_bLD, lengths)) / 2
        padding_bL = behind(lengths, tokens.shape[1])
        if self.pool is not None:
            return self.pool(states_bLD, ~padding_bL)
        return states_bLD.masked_fill(padding_bL[..., None], -torch.inf).amax(dim=1)
