"""Draws that learn from the trials before, by Optuna's tree-structured Parzen estimator."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune.points import Point, draw, multiples
from tune.space import Domain

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True)
class DefineByRun:
    """Optuna's form of a space with conditions: a function that asks a trial for one value after the other.

    A class, because Ray pickles it with the search.
    """

    space: Mapping[str, Domain]

    def __call__(self, trial: "Trial") -> dict[str, Any]:
        """Return the parameters that Ray Tune hands on beside those asked for."""
        return Point(draw(self.space, lambda name, domain: suggest(trial, name, domain))).encode()


def suggest(trial: "Trial", name: str, domain: Domain) -> Any:
    """Ask `trial` for a value of `domain`; each element of a list has a name of its own."""
    if domain.each is not None:
        return [
            suggest(trial, f"{name}[{number}]", element) if isinstance(element, Domain) else element
            for number, element in enumerate(domain.each)
        ]
    if domain.choice is not None:  # categories are text and numbers to Optuna, sections and lists among ours
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in domain.choice]))
    if domain.uniform is not None:
        return trial.suggest_float(name, *domain.uniform)
    if domain.loguniform is not None:
        return trial.suggest_float(name, *domain.loguniform, log=True)
    if domain.quniform is not None:
        first, last, step = multiples(domain)
        return trial.suggest_int(name, first, last) * step
    assert domain.randint is not None
    return trial.suggest_int(name, *domain.randint)
