"""What pydantic found wrong with a YAML file, one line per mistake: the key, the value, what is accepted instead."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from distributed.config.keys import KINDS

Hint = Callable[[str], str]
"""From an unknown dotted key to `; did you mean ...`, or nothing."""


def mistakes(error: ValidationError, *, source: str, hint: Hint) -> str:
    """Return the lines for `error`, each of which begins with `source`."""
    return "\n".join(f"{source}: {_line(dict(item), hint)}" for item in error.errors())


def _line(item: dict[str, Any], hint: Hint) -> str:
    key = ".".join(str(part) for part in _without_tags(item["loc"]))
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key (value {_brief(item['input'])}){hint(key)}"
    if item["type"] == "union_tag_invalid":
        return f"{key}.kind={item['ctx']['tag']!r} is unknown; accepted: {item['ctx']['expected_tags']}"
    if item["type"] == "missing":
        return f"{key}: missing; it has no default"
    if item["type"] == "value_error" and (not key or message.startswith(key) or isinstance(item["input"], dict)):
        return message if not key or message.startswith(key) else f"{key}: {message}"
    return f"{key}={_brief(item['input'])} is not accepted: {message}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"


def _without_tags(loc: tuple[str | int, ...]) -> list[str | int]:
    """Drop the branch names that pydantic puts into the path of a tagged union (`model.towers.image.cnn.width`)."""
    kept: list[str | int] = []
    for part in loc:
        if not (kept and part in KINDS.get(str(kept[-1]), ())):
            kept.append(part)
    return kept
