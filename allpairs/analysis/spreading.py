"""Gradient norms of many objectives against how far similarities have spread: synthetic batches and real ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean
from typing import Any

from allpairs.analysis.batches import batches
from allpairs.analysis.gradients import Spread, TangentialNorms, spread, tangential_norms
from allpairs.analysis.synthetic import GENERATORS, NOISE_LEVELS, Scenario
from allpairs.analysis.variants import Variant, all_variants, kind_of
from allpairs.embeddings import EmbeddingSet, Origin
from allpairs.objectives import PairObjective


@dataclass(frozen=True)
class Point:
    """One batch (or the mean over several): where it stands, and every objective's norms there."""

    source: str
    """Noise level, or the run and checkpoint of real embeddings."""
    spread: Spread
    norms: dict[str, TangentialNorms]
    """By the objective's label."""
    kinds: dict[str, str]
    """By the objective's label: which of `variants.KINDS` it is."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        norms = {label: value._asdict() for label, value in self.norms.items()}
        return {"source": self.source, "spread": self.spread._asdict(), "norms": norms}


def compared(origins: Sequence[Origin] = ()) -> list[Variant]:
    """Return every objective with its defaults, the unified loss with γ = 1, for which U §3.3 argues, and the
    objectives that embeddings of `origins` were trained with.
    """
    trained = [Variant(origin.objective, origin.arguments) for origin in origins if origin.objective]
    variants = [*all_variants(), Variant("unified", {"scale": 1.0}), *trained]
    return list({variant.label: variant for variant in variants}.values())


def on_synthetic(scenario: Scenario, *, size: int, dim: int, seed: int) -> list[Point]:
    """Return a point per noise level, widest first."""
    objectives = {variant.label: variant.make() for variant in compared()}
    points = []
    for noise in NOISE_LEVELS:
        queries, candidates = GENERATORS[scenario](noise, size=size, dim=dim, seed=seed)
        norms = {label: tangential_norms(each, queries, candidates) for label, each in objectives.items()}
        points.append(Point(f"noise {noise:g}", spread(queries, candidates), norms, _kinds(objectives)))
    return points


def on_embeddings(embeddings: EmbeddingSet, variants: Sequence[Variant], *, size: int, seed: int) -> Point:
    """Return the mean over the batches of one pass; every objective sees pairs of an image and one of its captions.

    Raises:
        UserError: a batch size that does not fit the data.
    """
    objectives = {variant.label: variant.make().eval() for variant in variants}
    spreads: list[Spread] = []
    norms: dict[str, list[TangentialNorms]] = {label: [] for label in objectives}
    for queries, candidates, ids, _ in batches(embeddings, size=size, seed=seed):
        spreads.append(spread(queries, candidates, ids=ids))
        for label, objective in objectives.items():
            norms[label].append(tangential_norms(objective, queries, candidates, ids=ids))
    origin = embeddings.origin
    source = " ".join(str(part) for part in (origin.run, origin.checkpoint, embeddings.split) if part) or "embeddings"
    return Point(
        source,
        Spread(*_means(spreads)),
        {label: TangentialNorms(*_means(values)) for label, values in norms.items()},
        _kinds(objectives),
    )


def _kinds(objectives: Mapping[str, PairObjective[Any]]) -> dict[str, str]:
    return {label: kind_of(objective) for label, objective in objectives.items()}


def _means(rows: Sequence[tuple[float, ...]]) -> list[float]:
    return [fmean(column) for column in zip(*rows, strict=True)]


def vanishing_order(points: Sequence[Point], label: str, measure: str) -> float | None:
    """Return k of norm ∝ noise^k between the two smallest noise levels: 0 stays, 1 vanishes with the noise.

    None where the norm is exactly 0.
    """
    before, last = (getattr(point.norms[label], measure) for point in points[-2:])
    if not (before and last):
        return None
    return log(before / last) / log(NOISE_LEVELS[-2] / NOISE_LEVELS[-1])
