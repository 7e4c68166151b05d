"""Numbers that come with the pairs: margins in a sample's ``.json``, read once, into the index.

A data set has the columns that it was built with (`--margin-column NAME`). A sample's value is one number for all of
its captions, or a list with one number for each.
"""

import json
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

MARGIN_COLUMNS = "margin_columns"
"""The key of a manifest's `source` that names them."""


def columns_of(source: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of a data set that was built as its manifest's `source` says."""
    return tuple(source.get(MARGIN_COLUMNS, ()))


def with_columns(source: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return `source` with the columns to build; without any it stays as it is."""
    return dict(source) | ({MARGIN_COLUMNS: list(dict.fromkeys(columns))} if columns else {})


def margins_in(facts: Mapping[str, Any], column: str, captions: int) -> list[float]:
    """Return one margin for each of a sample's `captions`.

    Raises:
        ValueError: what is there instead, beginning with the column's name.
    """
    if facts.get(column) is None:
        raise ValueError(f"{column} is missing")
    value = facts[column]
    values = value if isinstance(value, list) else [value] * captions
    if len(values) != captions:
        raise ValueError(f"{column} has {len(values)} numbers for {captions} captions")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each <= sys.float_info.max:
            raise ValueError(f"{column} is {reprlib.repr(each)}, not a finite number of at least 0")
    return [float(each) for each in values]


def facts_in(member: bytes | None) -> dict[str, Any]:
    """Return what a sample's ``.json`` member says; nothing where there is none. Raises ValueError."""
    if member is None:
        return {}
    try:
        facts = json.loads(member)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        facts = None
    if not isinstance(facts, dict):
        raise ValueError("its .json is no JSON object")
    return facts
