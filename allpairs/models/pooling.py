"""From a set of vectors to one: VSE∞'s generalised pooling operator, and sequences of unequal length.

Shape legend: b items, N vectors of each (padded), D their length, P length of a position's code, H hidden size.
"""

import math

import torch
from torch import Tensor, nn

_TEMPERATURE = 0.1


class GeneralizedPooling(nn.Module):
    """Pool `[b, N, D]` by weights learned for the 1st, 2nd, … largest value of each dimension: `[b, D]`.

    Position codes (sinusoidal, P = 32) go through a bidirectional GRU of H = 32; the mean of both directions through a
    linear layer and a softmax at temperature 0.1 gives N weights, for a set of its own length. Mean and maximum are
    special cases. Source: VSE∞ (Chen et al. 2021), section 3.2 and released code.
    """

    def __init__(self, code: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.code = code
        self.forwards = nn.GRU(code, hidden, batch_first=True)
        self.backwards = nn.GRU(code, hidden, batch_first=True)
        self.score = nn.Linear(hidden, 1, bias=False)

    def weights(self, lengths: Tensor, longest: int) -> Tensor:
        """Return weights `[b, longest]` for sets of `lengths` `[b]`, zero behind each set's end."""
        codes_NP = position_codes(longest, self.code).to(self.score.weight)
        codes_bNP = codes_NP.expand(len(lengths), -1, -1)
        forward_bNH, _ = self.forwards(codes_bNP)
        backward_bNH, _ = self.backwards(reverse(codes_bNP, lengths))
        states_bNH = (forward_bNH + reverse(backward_bNH, lengths)) / 2
        scores_bN = self.score(states_bNH).squeeze(2) / _TEMPERATURE
        return scores_bN.masked_fill(behind(lengths, longest), -torch.inf).softmax(dim=1)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Pool `vectors` `[b, N, D]` where `present` (bool `[b, N]`, at least one of each item)."""
        lengths = present.sum(dim=1)
        sorted_bND = vectors.masked_fill(~present[..., None], -torch.inf).sort(dim=1, descending=True).values
        empty_bN = behind(lengths, vectors.shape[1])
        weights_bN = self.weights(lengths, vectors.shape[1]).to(vectors.dtype)
        return (sorted_bND.masked_fill(empty_bN[..., None], 0.0) * weights_bN[..., None]).sum(dim=1)


def position_codes(count: int, size: int) -> Tensor:
    """Return the sinusoidal codes of positions 0 to `count` − 1, `[count, size]` (Vaswani et al. 2017, section 3.5)."""
    frequency = torch.exp(torch.arange(0, size, 2, dtype=torch.float64) * (-math.log(10_000.0) / size))
    angle = torch.arange(count)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def reverse(sequence_bNX: Tensor, lengths: Tensor) -> Tensor:
    """Turn each sequence round within its true length; behind that stands its first element, which nobody reads."""
    position_N = torch.arange(sequence_bNX.shape[1], device=lengths.device)
    source_bN = (lengths[:, None] - 1 - position_N).clamp(min=0)
    return sequence_bNX.gather(1, source_bN[..., None].expand_as(sequence_bNX))


def behind(lengths: Tensor, longest: int) -> Tensor:
    """Return bool `[b, longest]`: the places behind each sequence's end."""
    return torch.arange(longest, device=lengths.device) >= lengths[:, None]


def keep_some(present: Tensor, drop: float) -> Tensor:
    """Return `present` `[b, N]` with each place left out with probability `drop`; no item loses its last one."""
    kept = present & (torch.rand(present.shape, device=present.device) >= drop)
    return torch.where(kept.any(dim=1, keepdim=True), kept, present)
