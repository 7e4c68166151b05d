"""COCOS over a data set: the counts of every batch, as mean and standard deviation."""

from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from allpairs.analysis.batches import batches
from allpairs.analysis.contributing import EPSILON, KEYS, count_contributing
from allpairs.analysis.variants import Variant
from allpairs.analysis.weights import Direction
from allpairs.embeddings import EmbeddingSet
from allpairs.engine.contract import Family

DIRECTIONS: tuple[Direction, Direction] = ("i2t", "t2i")


class MeanStd(NamedTuple):
    """Mean and standard deviation (of the population) over the batches."""

    mean: float
    std: float


@dataclass(frozen=True)
class Setup:
    """How batches are drawn and what counts."""

    batch_size: int = 128
    """Images per batch."""
    captions: int = 5
    """Captions per image, at most, in the batches of `smooth_ap`; the others see as many as in training."""
    seed: int = 0
    epsilon: float = EPSILON
    with_tau: bool = True
    """See `count_contributing`."""


@dataclass(frozen=True)
class Cocos:
    """What one objective counts on one split under one checkpoint."""

    run: str
    checkpoint: str
    step: int | None
    split: str
    objective: str
    """Its label."""
    family: Family
    setup: Setup
    captions: int
    """Captions per image, at most, in these batches."""
    batches: int
    left_out: int
    """Images that filled no whole batch."""
    counts: dict[Direction, dict[str, MeanStd]]
    """By direction and key, see `contributing.KEYS`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {
            "counts": {
                direction: {key: value._asdict() for key, value in of_direction.items()}
                for direction, of_direction in self.counts.items()
            }
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Cocos":
        """Return what `to_json` was called on; ValueError, KeyError or TypeError if it was not."""
        counts = {
            direction: {key: MeanStd(**values["counts"][direction][key]) for key in KEYS[values["family"]]}
            for direction in DIRECTIONS
        }
        return cls(**(values | {"setup": Setup(**values["setup"]), "counts": counts}))


def count_over_batches(embeddings: EmbeddingSet, variant: Variant, setup: Setup) -> Cocos:
    """Count the contributing samples of `variant` in batches over all of `embeddings`.

    Source: C §5 (COCOS): one pass over the training set, frozen weights, mean ± standard deviation over the batches.

    Raises:
        UserError: an impossible objective or batch size.
    """
    objective = variant.make().eval()
    captions = 1
    if objective.family == "ranking":
        captions = setup.captions
    elif not objective.own_positive:
        captions = embeddings.origin.captions_per_image
    found: dict[Direction, dict[str, list[float]]] = {direction: {} for direction in DIRECTIONS}
    number = 0
    for batch in batches(embeddings, size=setup.batch_size, captions=captions, seed=setup.seed):
        number += 1
        counted = count_contributing(
            objective,
            batch.scores(unit=objective.normalize),
            query_ids=batch.query_ids,
            candidate_ids=batch.candidate_ids,
            epsilon=setup.epsilon,
            with_tau=setup.with_tau,
        )
        for direction, of_direction in counted.items():
            for key, value in of_direction.items():
                found[direction].setdefault(key, []).append(value)
    origin = embeddings.origin
    return Cocos(
        run=origin.run,
        checkpoint=origin.checkpoint,
        step=origin.step,
        split=embeddings.split,
        objective=variant.label,
        family=objective.family,
        setup=setup,
        captions=captions,
        batches=number,
        left_out=len(embeddings.images) - number * setup.batch_size,
        counts={
            direction: {key: MeanStd(fmean(values), pstdev(values)) for key, values in of_direction.items()}
            for direction, of_direction in found.items()
        },
    )
