"""The values a search tries for one configuration key, and how tables and plots call a trial: by its values."""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from allpairs.errors import nearest

Kind = Literal["grid", "choice", "uniform", "loguniform", "quniform", "randint", "each"]


class Domain(BaseModel):
    """Exactly one of these, e.g. ``{grid: [0.1, 0.2]}`` or ``{loguniform: [1e-4, 1e-2]}``; and perhaps `when`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    grid: tuple[Any, ...] | None = Field(None, min_length=1)
    """Every value, combined with every value of the other keys."""
    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    """One of these values, drawn."""
    uniform: tuple[float, float] | None = None
    """A number from low to high."""
    loguniform: tuple[float, float] | None = None
    """A positive number from low to high, evenly in its logarithm."""
    quniform: tuple[float, float, float] | None = None
    """Low, high, step: a multiple of the step from low to high."""
    randint: tuple[int, int] | None = None
    """A whole number from low to high, both included."""
    each: tuple["Domain | float", ...] | None = Field(None, min_length=1)
    """A list, such as a polynomial's coefficients: each element a number, or drawn from its own choice or range."""
    when: dict[str, Any] | None = Field(None, min_length=1, max_length=1)
    """A key further up in the space and the value, or list of values, under which this key has a value at all."""

    @field_validator("grid", "choice")
    @classmethod
    def _read_numbers(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(_number(value) for value in values)

    @model_validator(mode="after")
    def _is_one_domain(self) -> Self:
        given = self.model_fields_set - {"when"}
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(get_args(Kind))}")
        kind = self.kind
        bounds = getattr(self, kind)
        if kind == "each":
            for element in self.each or ():
                if isinstance(element, Domain) and (element.kind in ("grid", "each") or element.when):
                    raise ValueError("each: accepted are numbers, choices and ranges")
        elif kind not in ("grid", "choice") and not bounds[0] < bounds[1]:
            raise ValueError(f"{kind}: low {bounds[0]} must be less than high {bounds[1]}")
        if kind == "loguniform" and bounds[0] <= 0:
            raise ValueError(f"loguniform: low {bounds[0]} must be positive")
        if kind == "quniform" and not 0 < bounds[2] <= bounds[1] - bounds[0]:
            raise ValueError(f"quniform: step {bounds[2]} must be positive and fit between low and high")
        return self

    @property
    def kind(self) -> Kind:
        """Which of the fields is given."""
        return next(kind for kind in get_args(Kind) if kind in self.model_fields_set)

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that show whether a configuration takes this domain: all of a list, the ends of a range."""
        if self.each is not None:
            ends = [element.probes if isinstance(element, Domain) else (element,) for element in self.each]
            return tuple(
                [values[min(number, len(values) - 1)] for values in ends] for number in range(max(map(len, ends)))
            )
        values: tuple[Any, ...] = getattr(self, self.kind)
        return values if self.kind in ("grid", "choice") else values[:2]

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Say whether a trial with these `values` of the keys further up has one of this key."""
        return all(key in values and values[key] in accepted(value) for key, value in (self.when or {}).items())


def accepted(value: Any) -> tuple[Any, ...]:
    """Return the values that `when` names: a list of them, or the one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def check_conditions(space: Mapping[str, Domain]) -> None:
    """Raise ValueError where a `when` names no key further up, or a value that this never has."""
    above: dict[str, Domain] = {}
    for key, domain in space.items():
        for parent, wanted in (domain.when or {}).items():
            if parent not in above:
                hint = nearest(parent, above) if above else "; it has none"
                raise ValueError(f"space.{key}.when: {parent} is no key further up in the space{hint}")
            if above[parent].kind not in ("grid", "choice"):
                raise ValueError(f"space.{key}.when: {parent} is a range; accepted is a key with a list of values")
            for value in accepted(wanted):
                if value not in above[parent].probes:
                    names = [str(probe) for probe in above[parent].probes]
                    raise ValueError(f"space.{key}.when: {parent} is never {value!r}{nearest(str(value), names)}")
        above[key] = domain


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4, without a point, as text.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def short_key(key: str) -> str:
    """Return the last part of a configuration key: `objective.margin` is `margin`."""
    return key.rpartition(".")[2]


def short_value(value: Any) -> str:
    """Write a value briefly; a section by its name and arguments, ``vlc(scale=20)``."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{short_key(key)}={short_value(item)}" for key, item in value.items() if key != "name")
        name = str(value.get("name", ""))
        return f"{name}({inside})" if inside else name
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(short_value, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe(values: Mapping[str, Any]) -> str:
    """Name a trial, e.g. ``margin=0.2 scale=20`` or ``triplet_hn(margin=0.2)``."""
    return " ".join(
        short_value(value)
        if isinstance(value, Mapping) and "name" in value
        else f"{short_key(key)}={short_value(value)}"
        for key, value in values.items()
    )
