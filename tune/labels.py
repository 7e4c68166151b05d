"""How a trial is called in tables and plots: by its values."""

from collections.abc import Mapping
from typing import Any


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
