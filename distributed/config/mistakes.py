"""What pydantic found wrong with a file, one line per mistake: the key, the value, what is accepted instead."""

import reprlib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from distributed.config.keys import KINDS

Hint = Callable[[str, Any], str]
"""From an unknown dotted key and its value to `; did you mean ...`, or nothing."""


def mistakes(error: ValidationError, *, source: str, hint: Hint) -> str:
    """Return the lines for `error`, each of which begins with `source`."""
    return "\n".join(f"{source}: {_line(dict(item), hint)}" for item in error.errors())


def first_mistake(error: ValidationError) -> str:
    """Return one line for the first mistake of a file that may hold a hundred thousand alike, and how many follow."""
    others = error.error_count() - 1
    more = f" (and {others:,} more mistakes)" if others else ""
    return _line(dict(error.errors()[0]), hint=lambda key, value: "") + more


def _line(item: dict[str, Any], hint: Hint) -> str:
    key = _place(_without_tags(item["loc"]))
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if item["type"] == "json_invalid":
        return message
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key (value {_brief(item['input'])}){hint(key, item['input'])}"
    if item["type"] == "union_tag_invalid":
        return f"{key}.kind={item['ctx']['tag']!r} is unknown; accepted: {item['ctx']['expected_tags']}"
    if item["type"] == "missing":
        return f"{key}: missing; it has no default"
    if item["type"] == "value_error" and (not key or message.startswith(key) or isinstance(item["input"], dict)):
        return message if not key or message.startswith(key) else f"{key}: {message}"
    given = f"{key}={_brief(item['input'])}" if key else _brief(item["input"])
    return f"{given} is not accepted: {message}"


_BRIEF = reprlib.Repr()  # a whole data file may be one list where an object should be
_BRIEF.maxlist = _BRIEF.maxdict = _BRIEF.maxtuple = 20
_BRIEF.maxlevel = 4


def _brief(value: Any) -> str:
    text = _BRIEF.repr(value) if isinstance(value, list | dict | tuple) else repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"


def _place(loc: list[str | int]) -> str:
    """Return `images[3].sentences[0].raw`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _without_tags(loc: tuple[str | int, ...]) -> list[str | int]:
    """Drop the branch names that pydantic puts into the path of a tagged union (`model.towers.image.cnn.width`)."""
    kept: list[str | int] = []
    for part in loc:
        if not (kept and part in KINDS.get(str(kept[-1]), ())):
            kept.append(part)
    return kept
