"""JSON that somebody else wrote, read as the shape it should have: one line for what is not so."""

import codecs
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from allpairs.errors import UserError
from distributed.config.mistakes import first_mistake

T = TypeVar("T")


def read_document(file: Path, shape: TypeAdapter[T], what: str) -> T:
    """Return the JSON document in `file` as `shape`; `what` names it in messages ("a data manifest").

    It is parsed and checked in one pass, within bounds of nesting and of numbers; what the shape doesn't know is
    ignored, or refused where the shape says so.

    Raises:
        UserError: the file cannot be read, is no JSON, or has another shape: the first place where it has, and its
            value.
    """
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read ({reason})") from None
    try:
        return shape.validate_json(content.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise UserError(f"{file}: not {what}: {first_mistake(error)}") from None
