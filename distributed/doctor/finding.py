"""What one check of the doctor says, and questions asked in a process of their own: a crash there is an answer."""

import subprocess
import sys
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


class ProbeError(RuntimeError):
    """The probing process failed; the message is the last line it wrote."""


def ask(code: str, *arguments: str, timeout_s: float = 120.0) -> str:
    """Run `code` with `arguments` in a fresh interpreter like this one and return the last line it printed.

    Raises :class:`ProbeError` when it exits with an error, dies by a signal or outlives `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"no answer within {timeout_s:.0f} s") from None
    if done.returncode < 0:
        raise ProbeError(f"killed by signal {-done.returncode}")
    if done.returncode > 0:
        raise ProbeError(_last_line(done.stderr) or f"exit code {done.returncode}")
    return _last_line(done.stdout)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
