"""What happened between two rows of metrics, and over an epoch: whether the embeddings fall together."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from allpairs.engine import similarity_statistics
from distributed.step import Pairs, StepOutput
from distributed.world import World


class Interval:
    """Collects steps from `started` (seconds of training so far) until it is measured, once.

    Loss and similarities depend on the number of negatives, and the last batch of an epoch, which ends an interval, may
    have fewer or more of them than the others: it counts only where it is the interval's only step.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._losses: list[float] = []
        self._batch = 0
        self._rows = 0
        self._norm = 0.0
        self._last: tuple[Pairs, StepOutput] | None = None
        self._steps = 0
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count the block's time under `what`: ``read``, ``agree``, ``forward``, ``update`` or ``save``."""
        started = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - started

    @property
    def empty(self) -> bool:
        """Whether no step was noted yet."""
        return self._last is None

    def add(self, loss: float, norm: float, rows: int, pairs: Pairs, output: StepOutput) -> None:
        """Note one step: its global loss, gradient norm, global rows, and this rank's pairs and embeddings."""
        self._norm = norm
        self._steps += 1
        self._rows += rows
        self._batch = self._batch or rows
        if rows == self._batch:
            self._losses.append(loss)
            self._last = (pairs, output)

    def measure(self, world: World, train_seconds: float) -> dict[str, float]:
        """Return the mean loss over whole batches, their size, the last one's global similarities, and the speed.

        Collective. The gradient norm is the last step's, whatever its size. Where rank 0's time went, in ms a step:
        waiting for samples (`ms_read`), for the other ranks' word (`ms_agree`), forward with the objective
        (`ms_forward`), backward, average and optimiser (`ms_update`), for a checkpoint's copy or the one before it
        (`ms_save`).
        """
        assert self._last is not None, "an interval without steps"
        pairs, output = self._last
        # With k captions per image the first one speaks for the image.
        captions_per_image = max(1, len(output.texts_cD) // max(1, len(output.images_bD)))
        first = slice(None, None, captions_per_image)
        similarities = similarity_statistics(
            output.images_bD,
            output.texts_cD[first],
            query_ids=pairs.image_ids_b,
            text_ids=None if pairs.text_ids_c is None else pairs.text_ids_c[first],
            group=world.group,
        )
        return {
            "train/loss": sum(self._losses) / len(self._losses),
            "train/batch": self._batch,
            "train/positive_similarity": similarities.positive,
            "train/hardest_negative_similarity": similarities.hardest_negative,
            "train/gradient_norm": self._norm,
            "train/samples_per_second": self._rows / max(1e-9, train_seconds - self._started),
            **{f"train/ms_{what}": 1000 * seconds / self._steps for what, seconds in self._seconds.items()},
            **_memory(world),
        }


def _memory(world: World) -> dict[str, float]:
    """Return the most that tensors took on this rank's GPU since the last row, in GB (10⁹ bytes)."""
    if world.device.type != "cuda":
        return {}
    most = torch.cuda.max_memory_allocated(world.device)
    torch.cuda.reset_peak_memory_stats(world.device)
    return {"train/gpu_gb": most / 1e9}


class Collapse:
    """Notices a run whose hardest negatives stay above its positives and that retrieves no better than by chance.

    Either alone is common in runs that do well: among thousands of candidates one is often nearer than the positive,
    and the first epochs may find little.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._above = 0

    def add(self, row: Mapping[str, float]) -> None:
        """Note a row of training metrics."""
        self._rows += 1
        self._above += row["train/hardest_negative_similarity"] >= row["train/positive_similarity"]

    def found(self, rsum: float, images: int) -> bool:
        """Judge the rows since the last call and the RSUM of a gallery of `images` images, each with its captions."""
        stayed_above = 0 < self._rows == self._above
        self._rows = self._above = 0
        chance = 2 * sum(100 * min(1.0, k / images) for k in (1, 5, 10))
        return stayed_above and rsum <= chance + min(2 * chance, 0.1 * (600 - chance))
