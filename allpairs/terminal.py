"""Text of strangers (captions, keys, names of files) as a terminal may show it."""

import re

# What a terminal obeys instead of showing it: control characters but for tabs and ends of lines, orders to write from
# right to left, and bytes that are no UTF-8.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    r"""Return `text` with what a terminal would obey written as escapes: ``\x1b[2J`` clears no screen."""
    return _OBEYED.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    code -= 0xDC00 if code >= 0xDC80 else 0  # a byte of a file's name, which Python keeps as a surrogate
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
