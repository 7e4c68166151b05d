"""Questions asked in a process of their own, so that a crash or a hang there is an answer and not the doctor's end."""

import subprocess
import sys


class ProbeError(RuntimeError):
    """The probing process failed; the message is the last line it wrote."""


def ask(code: str, timeout_s: float = 120.0) -> str:
    """Run `code` in a fresh interpreter like this one and return the last line it printed.

    Raises :class:`ProbeError` when it exits with an error, dies by a signal or outlives `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False
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
