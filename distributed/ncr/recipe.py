"""The training loop's side of the recipe: when pairs are divided, what each batch's margins are, what is written.

Legend as in division.py; b pairs of this rank's batch.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from allpairs.models import DualEncoder, Ensemble, Tokens
from allpairs.objectives import make
from distributed.config import Config
from distributed.data import Dataset
from distributed.data.batch import PairsOf
from distributed.data.texts import text_ids
from distributed.evaluation import Encoded, encode
from distributed.ncr.division import Division, batches_of, judge, write_noisy_pairs
from distributed.world import World


class NoisyCorrespondence:
    """One rank's share of the recipe; a `MarginSource` of the reader, whose margins change with each epoch.

    Attributes:
        division: of the pairs, as of the start of this epoch; None in the warm-up.
    """

    def __init__(self, config: Config, world: World, dataset: Dataset, noisy_pairs: Path) -> None:
        """Prepare for the pairs of `dataset`; `noisy_pairs` is where rank 0 writes those called noisy."""
        self._config, self._world, self._dataset, self._path = config, world, dataset, noisy_pairs
        counts = dataset.caption_counts()
        self._first, self._pairs = np.cumsum(counts) - counts, int(counts.sum())
        self._margin = float(vars(make(config.objective.name, **config.objective.arguments()))["margin"])
        self.division: Division | None = None
        self._margins_C2 = torch.empty(0, 2)

    def divide(self, encoder: DualEncoder, vocabulary: Tokens, epoch: int, epochs: float) -> None:
        """Divide the pairs, at the start of `epoch` of so many, by what both nets make of them now. Collective.

        Rank 0 holds the embeddings of the training set while it judges, as of a split that is evaluated; its word is
        everybody's. Pairs that cannot be used count as clean: they never train.

        Raises:
            Stopped: on all ranks, when more samples than allowed cannot be used.
        """
        assert isinstance(encoder, Ensemble)
        encoded = encode(encoder, self._dataset, vocabulary, self._config, self._world)
        found = torch.empty(3, self._pairs, 2) if encoded is None else self._judge(encoder, encoded, epoch)
        posteriors, labels, noisy = self._world.broadcast(found)
        division = Division(posteriors, labels, noisy > 0)
        self._use(division, epoch, epochs)
        if self._world.rank == 0:
            write_noisy_pairs(self._path, division, self._dataset, self._config.train.ncr.threshold)

    def kept(self) -> Callable[[Path], None] | None:
        """Return what writes the division that trains this epoch into a checkpoint's folder; None in the warm-up."""
        return None if self.division is None else self.division.save

    def restore(self, folder: Path, epoch: int, epochs: float) -> None:
        """Go on, inside of `epoch` of so many, with the division that `save` wrote."""
        self._use(Division.load(folder), epoch, epochs)

    def _use(self, division: Division, epoch: int, epochs: float) -> None:
        settings = self._config.train.ncr
        since = settings.warmup_epochs + settings.noisy_after * (epochs - settings.warmup_epochs)
        self.division = division
        self._margins_C2 = division.margins(self._margin, with_noisy=epoch >= since)

    def _judge(self, encoder: Ensemble, encoded: Encoded, epoch: int) -> Tensor:
        ids_C = encoded.caption_ids_C.numpy()
        start = np.searchsorted(ids_C, ids_C, side="left")  # captions are image-major, images in order
        places = torch.from_numpy(self._first[ids_C] + np.arange(len(ids_C)) - start)
        rows_C = torch.searchsorted(encoded.image_ids_N, encoded.caption_ids_C)
        train = self._config.train
        batches = batches_of(len(rows_C), train.global_batch, seed=train.seed, epoch=epoch)
        nets = zip(encoder.of_each(encoded.images_ND), encoder.of_each(encoded.captions_CD), strict=True)
        texts_C = None
        if self._config.data.equal_captions == "masked":
            texts_C = torch.from_numpy(text_ids(self._dataset.all_captions()))[places]
        judged = [judge(images, captions, rows_C, batches, self._margin, texts_C=texts_C) for images, captions in nets]
        losses, predictions = (torch.stack(columns, dim=1) for columns in zip(*judged, strict=True))
        found = Division.of_nets(losses, predictions, train.ncr.threshold)
        whole = torch.stack([torch.ones(self._pairs, 2), torch.ones(self._pairs, 2), torch.zeros(self._pairs, 2)])
        whole[:, places] = torch.stack([found.posteriors, found.labels, found.noisy.float()])
        return whole

    def __call__(self, pairs: PairsOf, size: int, part: slice) -> np.ndarray | None:
        """Return the margins of the pairs at the places `part` of a global batch, for each net; None in the warm-up."""
        if self.division is None:
            return None
        rows, numbers = np.array([(pair.row, pair.caption or 0) for pair in pairs(part)], np.int64).reshape(-1, 2).T
        places = self._first[rows] + numbers  # of a row without captions another's, as it never trains
        return self._margins_C2[np.minimum(places, self._pairs - 1)].numpy()

    def metrics(self) -> dict[str, float]:
        """Return how many pairs are called clean and the mean label; nothing in the warm-up."""
        if self.division is None:
            return {}
        noisy = len(self.division.called_noisy(self._config.train.ncr.threshold))
        return {"train/clean_pairs": self._pairs - noisy, "train/mean_label": float(self.division.labels.mean())}
