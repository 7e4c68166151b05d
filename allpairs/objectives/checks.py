"""Checks of the values a user gives an objective; every message names the argument and what it accepts."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from allpairs.errors import UserError, nearest


def number(name: str, value: object, low: float, high: float) -> float:
    """Return `value` if it is a number in [low, high]."""
    number = _as_number(name, value, accepted := f"a number from {low:g} to {high:g}")
    if not low <= number <= high:
        _refuse(name, value, accepted)
    return number


def positive_number(name: str, value: object, high: float = math.inf) -> float:
    """Return `value` if it is a finite number above 0 and at most `high`."""
    accepted = "a finite number above 0" if high == math.inf else f"a number above 0 and at most {high:g}"
    number = _as_number(name, value, accepted)
    if not 0 < number <= high or number == math.inf:
        _refuse(name, value, accepted)
    return number


def flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")
    return value


def choice(name: str, value: object, accepted: Sequence[str]) -> Any:
    """Return `value` if it is one of `accepted`."""
    if not isinstance(value, str):
        _refuse(name, value, f"one of {', '.join(accepted)}")
    if value not in accepted:
        raise UserError(f"{name}={value!r} is unknown{nearest(value, accepted)}")
    return value


def _as_number(name: str, value: object, accepted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(name, value, accepted)
    return float(value)


def _refuse(name: str, value: object, accepted: str) -> NoReturn:
    raise UserError(f"{name}={value!r} is impossible; accepted: {accepted}")
