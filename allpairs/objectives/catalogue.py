"""Objectives by name: `make`, `names`, and what each one accepts."""

import inspect
from typing import Any

from allpairs.errors import UserError, nearest
from allpairs.objectives.base import PairObjective
from allpairs.objectives.binomial_deviance import BinomialDeviance
from allpairs.objectives.circle import Circle
from allpairs.objectives.goal import Goal
from allpairs.objectives.lifted import Lifted
from allpairs.objectives.multi_similarity import MultiSimilarity
from allpairs.objectives.nt_xent import NTXent
from allpairs.objectives.nt_xent_hn import NTXentHN
from allpairs.objectives.rsp import RSP
from allpairs.objectives.smooth_ap import SmoothAP
from allpairs.objectives.ssp import SSP
from allpairs.objectives.triplet import Triplet
from allpairs.objectives.triplet_hn import TripletHN
from allpairs.objectives.unified import Unified
from allpairs.objectives.vlc import VLC

_OBJECTIVES: dict[str, type[PairObjective[Any]]] = {
    "binomial_deviance": BinomialDeviance,
    "circle": Circle,
    "goal": Goal,
    "lifted": Lifted,
    "multi_similarity": MultiSimilarity,
    "nt_xent": NTXent,
    "nt_xent_hn": NTXentHN,
    "rsp": RSP,
    "smooth_ap": SmoothAP,
    "ssp": SSP,
    "triplet": Triplet,
    "triplet_hn": TripletHN,
    "unified": Unified,
    "vlc": VLC,
}


def names() -> list[str]:
    """Return the names of all objectives, sorted."""
    return sorted(_OBJECTIVES)


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of objective `name`: each a keyword-only parameter with its default and annotated type.

    Raises:
        UserError: an unknown name; the message gives the nearest.
    """
    return dict(inspect.signature(_class_of(name)).parameters)


def make(name: str, **given: Any) -> PairObjective[Any]:
    """Return the objective `name`, an `nn.Module`, with its arguments: `make("unified", margin=0.2, scale=60.0)`.

    Raises:
        UserError: an unknown name or argument (the message gives the nearest) or an impossible value.
    """
    known = arguments(name)
    for argument in given:
        if argument not in known:
            raise UserError(f"objective {name!r} has no argument {argument!r}{nearest(argument, known)}")
    return _class_of(name)(**given)


def _class_of(name: str) -> type[PairObjective[Any]]:
    if name not in _OBJECTIVES:
        raise UserError(f"unknown objective {name!r}{nearest(name, _OBJECTIVES)}")
    return _OBJECTIVES[name]
