"""What one check of the doctor says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One row of the doctor's table.

    A ``problem`` stops something everybody needs; a ``warning`` concerns something optional or only likely to hurt.
    `found` never holds a secret: where one lies is said, its value is not.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""
