"""The points of a search, what each of its trials sets: every combination, one key at a time, or draws."""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from tune.space import Domain

Suggest = Callable[[str, Domain], Any]
"""Draws from a domain that is a choice or a range, under a name."""

POINT = "point"
"""What Ray Tune knows a point by: the one parameter of a trial, JSON text, because Tune looks for domains in values."""

_MARK = "json:"

_DRAWS_IN_VAIN = 1000


@dataclass(frozen=True)
class Point:
    """What one trial sets."""

    values: Mapping[str, Any]
    """Of the searched keys that it has; of a reference, those of its own; with several seeds also `train.seed`."""
    reference: bool = False
    """Trained to be compared with: no point of the space."""

    def encode(self) -> dict[str, Any]:
        """Return the parameters of the trial for Ray Tune."""
        return {POINT: _MARK + json.dumps({"values": self.values, "reference": self.reference})}

    @classmethod
    def decode(cls, parameters: Mapping[str, Any]) -> Self:
        """Undo :meth:`encode`."""
        return cls(**json.loads(parameters[POINT].removeprefix(_MARK)))


def combinations(space: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """Return all combinations of the probes of `space`, for a grid its points; a key is left out where it has none."""
    points: list[dict[str, Any]] = [{}]
    for key, domain in space.items():
        points = [
            {**point, **chosen}
            for point in points
            for chosen in ([{key: value} for value in domain.probes] if domain.applies(point) else [{}])
        ]
    return points


def one_at_a_time(space: Mapping[str, Domain], home: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `home` with each key of `space` in turn at each of its values; what comes twice, once."""
    points = [{**home, key: value} for key, domain in space.items() for value in domain.probes]
    return [point for number, point in enumerate(points) if point not in points[:number]]


def probe_points(space: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """Return combinations in which every probe of `space` occurs, without trying all of them together."""
    points = []
    for key, domain in space.items():
        for value in domain.probes:
            forced, wanted = {key: value}, key
            while space[wanted].when:
                ((wanted, values),) = space[wanted].when.items()  # type: ignore[union-attr]
                forced[wanted] = values[0] if isinstance(values, list | tuple) else values
            points.append(draw(space, lambda name, one, forced=forced: forced.get(name, one.probes[0])))  # type: ignore[misc]
    return points


def draw(space: Mapping[str, Domain], suggest: Suggest) -> dict[str, Any]:
    """Return one point of `space`; a key is drawn only where its `when` is met."""
    values: dict[str, Any] = {}
    for key, domain in space.items():
        if domain.applies(values):
            values[key] = suggest(key, domain)
    return values


def draws(space: Mapping[str, Domain], number: int, seed: int) -> list[dict[str, Any]]:
    """Return `number` draws that follow from `seed`, no two alike: the same trial twice would tell nothing.

    Fewer where `space` has no more, by as many draws in a row that brought nothing new as make that all but certain.
    """
    numbers = random.Random(seed)
    points: list[dict[str, Any]] = []
    known, in_vain = set(), 0
    while len(points) < number and in_vain < _DRAWS_IN_VAIN:
        point = draw(space, lambda _, domain: _drawn(domain, numbers))
        text = json.dumps(point, sort_keys=True)
        if text in known:
            in_vain += 1
            continue
        known.add(text)
        points.append(point)
        in_vain = 0
    return points


def with_seeds(points: Iterable[Point], key: str, seeds: Iterable[int]) -> list[Point]:
    """Return every point with every seed, a seed of all points first: a search cut short has compared them all."""
    return [
        Point({**point.values, key: seed}, point.reference) for seed, point in itertools.product(seeds, list(points))
    ]


def multiples(domain: Domain) -> tuple[int, int, float]:
    """Return first and last factor, and the step, of the multiples that a `quniform` has."""
    assert domain.quniform is not None
    low, high, step = domain.quniform
    return math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9), step


def _drawn(domain: Domain, numbers: random.Random) -> Any:
    if domain.each is not None:
        return [_drawn(element, numbers) if isinstance(element, Domain) else element for element in domain.each]
    if domain.choice is not None:
        return numbers.choice(domain.choice)
    if domain.uniform is not None:
        return numbers.uniform(*domain.uniform)
    if domain.loguniform is not None:
        low, high = domain.loguniform
        return min(max(math.exp(numbers.uniform(math.log(low), math.log(high))), low), high)
    if domain.quniform is not None:
        first, last, step = multiples(domain)
        return numbers.randint(first, last) * step
    assert domain.randint is not None
    return numbers.randint(*domain.randint)
