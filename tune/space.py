"""The values a search tries for one configuration key, and how tables and plots call a trial: by its values."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Domain(BaseModel):
    """Exactly one of these, e.g. ``{grid: [0.1, 0.2]}`` or ``{loguniform: [1e-4, 1e-2]}``."""

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
    """Low, high, step: a number from low to high, rounded to a multiple of the step."""
    randint: tuple[int, int] | None = None
    """A whole number from low to high, both included."""

    @field_validator("grid", "choice")
    @classmethod
    def _read_numbers(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(_number(value) for value in values)

    @model_validator(mode="after")
    def _is_one_domain(self) -> Self:
        given = self.model_fields_set
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        kind = self.kind
        bounds = getattr(self, kind)
        if kind not in ("grid", "choice") and not bounds[0] < bounds[1]:
            raise ValueError(f"{kind}: low {bounds[0]} must be less than high {bounds[1]}")
        if kind == "loguniform" and bounds[0] <= 0:
            raise ValueError(f"loguniform: low {bounds[0]} must be positive")
        if kind == "quniform" and not 0 < bounds[2] <= bounds[1] - bounds[0]:
            raise ValueError(f"quniform: step {bounds[2]} must be positive and fit between low and high")
        return self

    @property
    def kind(self) -> str:
        """Which of the fields is given."""
        return next(iter(self.model_fields_set))

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that show whether a configuration takes this domain: all of a list, the ends of a range."""
        values = getattr(self, self.kind)
        return values if self.kind in ("grid", "choice") else values[:2]

    def to_ray(self) -> Any:
        """Return what Ray Tune draws from; sections and lists become JSON text (see :func:`decode`)."""
        import ray.tune

        values = getattr(self, self.kind)
        if self.kind == "grid":
            return ray.tune.grid_search([_encode(value) for value in values])
        if self.kind == "choice":
            return ray.tune.choice([_encode(value) for value in values])
        if self.kind == "randint":
            return ray.tune.randint(values[0], values[1] + 1)
        return getattr(ray.tune, self.kind)(*values)


def decode(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo the encoding of :meth:`Domain.to_ray` in the values Ray Tune drew for a trial."""
    return {
        key: json.loads(value[len(_MARK) :]) if isinstance(value, str) and value.startswith(_MARK) else value
        for key, value in values.items()
    }


def combinations(space: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """Return all combinations of the probes of `space`; for a grid these are its trials."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*(d.probes for d in space.values()))]


def one_at_a_time(space: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """Return combinations in which every probe of `space` occurs, without trying all of them together."""
    first = {key: domain.probes[0] for key, domain in space.items()}
    return [first | {key: value} for key, domain in space.items() for value in domain.probes]


# Searchers want plain values (Optuna's categories are text and numbers), and Tune looks for domains inside of dicts.
_MARK = "json:"


def _encode(value: Any) -> Any:
    return _MARK + json.dumps(value) if isinstance(value, Mapping | Sequence) and not isinstance(value, str) else value


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
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe(values: Mapping[str, Any]) -> str:
    """Name a trial, e.g. ``margin=0.2 scale=20`` or ``triplet_hn(margin=0.2)``."""
    return " ".join(
        short_value(value)
        if isinstance(value, Mapping) and "name" in value
        else f"{short_key(key)}={short_value(value)}"
        for key, value in values.items()
    )
