"""Keep secrets out of what is written and sent."""

import re
from typing import Any

_SECRET_KEY = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)
_KNOWN_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,})")
_HEX_TOKEN = re.compile(r"\b[0-9a-f]{40}\b")

REDACTED = "[redacted]"


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of a tree of plain values with secrets replaced.

    Replaced are: values under keys that name a secret, user:password in URLs, and strings in the shape of well-known
    access tokens (Hugging Face, GitHub, AWS; 40 hex digits as Weights & Biases uses, unless `key` says it is a commit).
    """
    if isinstance(value, dict):
        return {k: REDACTED if _SECRET_KEY.search(str(k)) and v else redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if isinstance(value, str):
        value = _KNOWN_TOKEN.sub(REDACTED, _URL_CREDENTIALS.sub(rf"\g<scheme>{REDACTED}@", value))
        return value if key.endswith("commit") else _HEX_TOKEN.sub(REDACTED, value)
    return value
