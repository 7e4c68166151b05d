"""What must be the same on every rank: compared in full at set-up, and by a fingerprint in an exchange of every step.

Ranks that differ in it train on without a word, each its own model: the loss they share hides it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from distributed.world import Stopped, World

_BITS = 20
"""Of a fingerprint: the sum of the squares of 8,192 of them is exact in float64."""
_IN_USE = ("lr", "weight_decay", "betas", "eps")
_SHOWN = 3


def require_same(world: World, settings: Mapping[str, Any]) -> None:
    """Compare `settings`, by name, with those of all ranks. Collective.

    Raises:
        Stopped: on every rank the same line, which names what differs and who has which value.
    """
    if world.size > 1 and len(set(world.gather(_digest(settings)))) > 1:
        refuse_difference(world, settings)


def refuse_difference(world: World, settings: Mapping[str, Any]) -> NoReturn:
    """Say what differs; call on all ranks once it is known that something does."""
    everyones = world.gather(dict(settings))
    names = list(dict.fromkeys(name for each in everyones for name in each))
    told = [
        f"{name} is {_who_has_what([each.get(name) for each in everyones])}"
        for name in names
        if any(each.get(name) != everyones[0].get(name) for each in everyones)
    ]
    more = f" (and {len(told) - _SHOWN} more)" if len(told) > _SHOWN else ""
    raise Stopped(f"the ranks do not train alike: {'; '.join(told[:_SHOWN])}{more}; all must have the same")


def fingerprint(settings: Mapping[str, Any]) -> list[int]:
    """Return two numbers to be added over the ranks, for `same`."""
    number = int(_digest(settings), 16) % 2**_BITS
    return [number, number**2]


def same(sums: Sequence[float], size: int) -> bool:
    """Return whether all of `size` ranks had the same fingerprint, by its `sums`: its variance is zero then alone."""
    total, squares = map(int, sums)
    return size * squares == total**2


def in_use(groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that an optimiser's groups of parameters have now, by name."""
    return {
        f"{name} of parameter group {number}": list(value) if isinstance(value, tuple) else value
        for number, group in enumerate(groups)
        for name in _IN_USE
        if (value := group.get(name)) is not None
    }


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=16).hexdigest()


def _who_has_what(values: Sequence[Any]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(repr(value), []).append(rank)
    return ", ".join(
        f"{value} on {'rank' if len(those) == 1 else 'ranks'} {', '.join(map(str, those[:8]))}"
        f"{', …' if len(those) > 8 else ''}"
        for value, those in ranks.items()
    )
