"""What happened between two rows of metrics, and over an epoch: whether the embeddings fall together."""

from collections.abc import Mapping

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
        self._norms: Mapping[str, float] = {}
        self._last: tuple[Pairs, StepOutput] | None = None
        self._steps = 0

    @property
    def empty(self) -> bool:
        """Whether no step was noted yet."""
        return self._last is None

    def add(self, loss: float, norms: Mapping[str, float], rows: int, pairs: Pairs, output: StepOutput) -> None:
        """Note one step: its global loss, norms by metric, global rows, and this rank's pairs and embeddings."""
        self._norms = norms
        self._steps += 1
        self._rows += rows
        self._batch = self._batch or rows
        if rows == self._batch:
            self._losses.append(loss)
            self._last = (pairs, output)

    def measure(self, world: World, train_seconds: float, parts: Mapping[str, float]) -> dict[str, float]:
        """Return the mean loss over whole batches, their size, the last one's global similarities, and the speed.

        Collective. The norms are the last step's, whatever its size. Where rank 0's time went, in ms a step:
        `parts` (`distributed.clock`) are seconds since the last row, and `ms_other` is what they leave of the steps.
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
        seconds = max(1e-9, train_seconds - self._started)
        within = sum(spent for part, spent in parts.items() if part != "save")
        return {
            "train/loss": sum(self._losses) / len(self._losses),
            "train/batch": self._batch,
            "train/positive_similarity": similarities.positive,
            "train/hardest_negative_similarity": similarities.hardest_negative,
            **self._norms,
            "train/samples_per_second": self._rows / seconds,
            "train/samples_per_second_per_worker": self._rows / seconds / world.size,
            **{f"train/ms_{part}": 1000 * spent / self._steps for part, spent in parts.items()},
            "train/ms_other": 1000 * max(0.0, seconds - within) / self._steps,
            **_memory(world),
        }


def _memory(world: World) -> dict[str, float]:
    """Return the most that tensors took on a GPU since the last row, and the allocator held, in GB (10⁹ bytes).

    Of the rank that needed most. Collective.
    """
    if world.device.type != "cuda":
        return {}
    here = torch.cuda.max_memory_allocated(world.device), torch.cuda.max_memory_reserved(world.device)
    torch.cuda.reset_peak_memory_stats(world.device)
    tensors, held = map(max, zip(*world.gather(here), strict=True))
    return {"train/gpu_gb": tensors / 1e9, "train/gpu_reserved_gb": held / 1e9}


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
