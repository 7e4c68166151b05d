"""Objectives under analysis: a name, its arguments, and the list of all of them."""

from dataclasses import dataclass, field
from typing import Any, get_args

from allpairs.objectives import PairObjective, make, names
from allpairs.objectives.goal import PairWeight, TripletWeight

KINDS = ("Unified family", "Sets of positives", "GOAL")
"""What figures group objectives by."""


def kind_of(objective: PairObjective[Any]) -> str:
    """Return which of `KINDS` an objective is: given by its gradient alone, over sets of positives, or neither."""
    if objective.surrogate is not None:
        return "GOAL"
    return "Unified family" if objective.own_positive else "Sets of positives"


@dataclass(frozen=True)
class Variant:
    """An objective by name and arguments, as `allpairs.objectives.make` takes them."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What tables and figures call it: ``unified(scale=50)``, ``goal(nca, sig)``."""
        if not self.arguments:
            return self.name
        plain = ("triplet", "pair")
        parts = [f"{value}" if key in plain else f"{key}={value}" for key, value in self.arguments.items()]
        return f"{self.name}({', '.join(parts)})"

    def make(self) -> PairObjective[Any]:
        """Return the objective.

        Raises:
            UserError: an unknown name or argument, or an impossible value.
        """
        return make(self.name, **self.arguments)


def goal_variants() -> list[Variant]:
    """Return the 15 objectives of GOAL, G Table 1."""
    return [
        Variant("goal", {"triplet": triplet, "pair": pair})
        for triplet in get_args(TripletWeight)
        for pair in get_args(PairWeight)
    ]


def all_variants() -> list[Variant]:
    """Return every objective with its defaults, GOAL as its 15."""
    return [Variant(name) for name in names() if name != "goal"] + goal_variants()
