"""Which pairs match, as two nets judge it: losses and predictions per pair, posteriors, labels, margins.

A pair is a caption with its image: captions in the data set's order, image-major. Legend: C pairs, N images,
D embedding, B pairs of a batch; the last axis of `[C, 2]` is the net.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from allpairs.errors import UserError
from allpairs.files import replacing
from allpairs.hashes import check_files
from distributed.data import Dataset
from distributed.data.draws import Purpose, permutation
from distributed.data.order import batch_sizes
from distributed.ncr.mixture import fit

FILE = "division.safetensors"
LEFT_OUT = -2.0
"""A margin at which no anchor's hinge is open: similarities of unit vectors differ by 2 at most."""
_ROWS = 1024  # of a batch compared at a time: [_ROWS, B] float32


@dataclass(frozen=True)
class Division:
    """One division of all training pairs, each `[C, 2]` float32; `of_nets` makes it."""

    posteriors: Tensor
    """The probability that the pair matches, by each net's mixture over the losses."""
    labels: Tensor
    """The soft correspondence label that trains each net, in [0, 1]; made with the other's posterior."""
    noisy: Tensor
    """Whether the pair trains that net as a noisy one (bool)."""

    @classmethod
    def of_nets(cls, losses: Tensor, predictions: Tensor, threshold: float) -> "Division":
        """Divide by each net's `losses` `[C, 2]` and label with the nets' `predictions` `[C, 2]`.

        Net A is trained with B's posteriors and B with A's (co-divide): of pairs above the `threshold` with
        y = w + (1 − w)·P of its own prediction P (co-refine), of the others with y = (P_A + P_B)/2 (co-guess).
        """
        posteriors = torch.stack([_posteriors(column) for column in losses.T], dim=1)
        others = posteriors.flip(1)
        refined = others + (1 - others) * predictions
        guessed = predictions.mean(1, keepdim=True).expand_as(refined)
        noisy = others <= threshold
        return cls(posteriors, torch.where(noisy, guessed, refined), noisy)

    def margins(self, margin: float, *, with_noisy: bool) -> Tensor:
        """Return m(10^y − 1)/9 per pair and net `[C, 2]`; without the noisy ones these have `LEFT_OUT`."""
        soft = margin * (10**self.labels - 1) / 9
        return soft if with_noisy else torch.where(self.noisy, LEFT_OUT, soft)

    def called_noisy(self, threshold: float) -> Tensor:
        """Return the pairs whose posterior, as the mean of both nets, is at most `threshold`, the least first."""
        mean = self.posteriors.mean(1)
        order = torch.argsort(mean, stable=True)
        return order[mean[order] <= threshold]

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        with replacing(folder / FILE) as path:
            save_file({name: tensor.contiguous() for name, tensor in vars(self).items()}, path)

    @classmethod
    def load(cls, folder: Path) -> "Division":
        """Read what `save` wrote; UserError where it is not there or was altered."""
        check_files(folder, (FILE,))
        try:
            return cls(**load_file(folder / FILE))
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"{folder / FILE}: not a readable division of pairs ({error})") from None


def _posteriors(losses_C: Tensor) -> Tensor:
    """Fit two Gaussians to losses scaled to [0, 1] and return the posterior of the lower one; 1 where all are equal."""
    low, high = losses_C.min(), losses_C.max()
    if low == high:
        return torch.ones_like(losses_C)
    scaled = ((losses_C - low) / (high - low)).double().numpy()
    return torch.from_numpy(fit(scaled).posteriors(scaled)).float()


def batches_of(pairs: int, batch: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut the pairs `0 … pairs-1` into batches of about `batch`, in an order drawn for this epoch."""
    order = permutation(seed, epoch, Purpose.DIVISION, np.arange(pairs))
    ends = np.cumsum(batch_sizes(pairs, batch, world=1, min_rows=min(2, pairs)))
    return np.split(order, ends[:-1])


def judge(
    images_ND: Tensor,
    captions_CD: Tensor,
    rows_C: Tensor,
    batches: list[np.ndarray],
    margin: float,
    *,
    texts_C: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each pair's loss and prediction P of a match under one net, `[C]` each; pair c has image `rows_C[c]`.

    The loss is the mean hinge over a batch in both directions, ℓ = mean_j [m + S_ij − d_i]+ + mean_j [m + S_ji − d_i]+;
    captions of one image are not each other's negatives, nor those with equal `texts_C`, where they are given.
    P = min(1, p/τ) with p = max(0, m − ℓ/2) and τ the mean of the ⌊B/10⌋ + 1 highest p of the batch (0 where τ is).
    """
    losses, predictions = torch.zeros(len(rows_C)), torch.zeros(len(rows_C))
    for batch in batches:
        places = torch.from_numpy(batch)
        rows = rows_C[places]
        texts = None if texts_C is None else texts_C[places]
        loss = pair_losses(images_ND[rows], captions_CD[places], rows, margin, texts)
        p = (margin - loss / 2).clamp(min=0)
        tau = p.topk(len(p) // 10 + 1).values.mean()
        losses[places] = loss
        predictions[places] = (p / tau.clamp(min=torch.finfo(p.dtype).tiny)).clamp(max=1)
    return losses, predictions


def pair_losses(
    images_BD: Tensor, captions_BD: Tensor, ids_B: Tensor, margin: float, texts_B: Tensor | None = None
) -> Tensor:
    """Return the mean hinge over all B pairs of the batch, both directions added: `[B]`."""
    own_B = (images_BD * captions_BD).sum(1)
    total_B = torch.zeros_like(own_B)
    for start in range(0, len(own_B), _ROWS):
        part = slice(start, start + _ROWS)
        scores = images_BD[part] @ captions_BD.T + margin
        for same_B in (ids_B,) if texts_B is None else (ids_B, texts_B):
            scores[same_B[part, None] == same_B] = -torch.inf
        total_B[part] += (scores - own_B[part, None]).relu().sum(1)
        total_B += (scores - own_B).relu().sum(0)
    return total_B / len(own_B)


def write_noisy_pairs(path: Path, division: Division, dataset: Dataset, threshold: float) -> None:
    """Write the pairs called noisy for people: key, caption and what each net says, the least match first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pairs = division.called_noisy(threshold)
    first = np.cumsum(counts := dataset.caption_counts()) - counts
    rows = np.searchsorted(first, pairs.numpy(), side="right") - 1
    numbers = pairs.numpy() - first[rows]
    columns: dict[str, object] = {
        "key": [dataset.key(int(row)) for row in rows],
        "caption": [dataset.captions(int(row))[number] for row, number in zip(rows, numbers, strict=True)],
        "posterior": division.posteriors[pairs].mean(1).numpy(),
        **{f"posterior_{net}": division.posteriors[pairs, place].numpy() for place, net in enumerate("ab")},
        **{f"label_{net}": division.labels[pairs, place].numpy() for place, net in enumerate("ab")},
    }
    with replacing(path) as partial:
        pq.write_table(pa.table(columns), partial)
