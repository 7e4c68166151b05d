"""Objectives by name: `make`, `names`, and what each one accepts."""

import inspect
import re
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
from allpairs.objectives.siglip import SigLIP
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
    "siglip": SigLIP,
    "smooth_ap": SmoothAP,
    "ssp": SSP,
    "triplet": Triplet,
    "triplet_hn": TripletHN,
    "unified": Unified,
    "vlc": VLC,
}

_ELSEWHERE = {
    "clip": "'vlc' with learn_scale=True is twice CLIP's value",
    "infonce": "'nt_xent' is twice its mean over both directions; 'vlc' takes 1/temperature as its scale",
    "ntxent": "'nt_xent' is twice the mean over all 2B anchors",
    "supcon": "'smooth_ap' and 'lifted' are the nearest: they take all positives of an anchor, by ids",
    "vse": "'triplet_hn' is VSE++'s loss, 'triplet' VSE0's",
}
"""What others call their losses, without `_`, `-`, `+` and "loss", and what is nearest here."""


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


def hint(unknown: str) -> str:
    """Say what is nearest to the name of an unknown objective: the end of a message."""
    bare = re.sub("[^a-z]|loss", "", unknown.lower())
    return f"; {_ELSEWHERE[bare]}" if bare in _ELSEWHERE else nearest(unknown, _OBJECTIVES)


def _class_of(name: str) -> type[PairObjective[Any]]:
    if name not in _OBJECTIVES:
        raise UserError(f"unknown objective {name!r}{hint(name)}")
    return _OBJECTIVES[name]
