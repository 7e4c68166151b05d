"""Polynomials of a similarity, given by the user as (constant, linear, quadratic)."""

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from torch import Tensor

from allpairs.errors import UserError

Coefficients = tuple[float, float, float]


class Polynomial(NamedTuple):
    """c0 + c1·x + c2·x²."""

    constant: float
    linear: float
    quadratic: float

    @classmethod
    def of(cls, name: str, coefficients: Sequence[float]) -> "Polynomial":
        """Return the polynomial of argument `name`.

        Raises:
            UserError: anything but three finite numbers.
        """
        accepted = "three finite numbers (constant, linear, quadratic)"
        if isinstance(coefficients, str) or not isinstance(coefficients, Sequence) or len(coefficients) != 3:
            raise UserError(f"{name}={coefficients!r} is impossible; accepted: {accepted}")
        for coefficient in coefficients:
            if isinstance(coefficient, bool) or not isinstance(coefficient, int | float) or not isfinite(coefficient):
                raise UserError(f"{name}={coefficients!r} is impossible; accepted: {accepted}")
        return cls(*(float(coefficient) for coefficient in coefficients))

    def value(self, x: Tensor) -> Tensor:
        """Return the polynomial of each x."""
        return self.constant + x * (self.linear + self.quadratic * x)

    def slope(self, x: Tensor) -> Tensor:
        """Return its derivative at each x."""
        return self.linear + 2 * self.quadratic * x
