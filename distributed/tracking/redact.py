"""Keep secrets out of what is written and sent: configuration, provenance, command lines, tags."""

import re
from typing import Any

_NAME = r"(?:[\w.-]*[_.-])?(?:api[_-]?key|key|token|secret|password|passwd|credentials?)"
_SECRET_KEY = re.compile(_NAME, re.IGNORECASE)
_SECRET_FLAG = re.compile(f"-{{1,2}}{_NAME}", re.IGNORECASE)
_VALUE = r"(?:\[redacted\]|\"[^\"]*\"|'[^']*'|[^\s,;&}\]]+)"
_SETTING = re.compile(rf"(?<![\w.-])(?P<name>{_NAME})(?P<between>=|:\s+){_VALUE}", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)
KNOWN_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[A-Z0-9]{12,}"
    r"|AIza[\w-]{30,}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,}|wandb_v\d_\w{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})"
)
_HEX_TOKEN = re.compile(r"\b[0-9a-f]{40}\b")

REDACTED = "[redacted]"


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of a tree of plain values with secrets replaced.

    Replaced are: values under keys that name a secret, also where a text sets such a key (`hub_token=...`, `--api-key
    ...` as words of a list), user:password in URLs, and strings in the shape of well-known access tokens (Hugging Face,
    GitHub, GitLab, AWS, Google, OpenAI, Slack, W&B, JSON Web Tokens; 40 hex digits as W&B uses, unless `key` says it
    is a commit).
    """
    if isinstance(value, dict):
        return {k: REDACTED if _SECRET_KEY.fullmatch(str(k)) and v else redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        before = [None, *value]
        return [
            REDACTED if isinstance(flag, str) and _SECRET_FLAG.fullmatch(flag) else redact(item, key)
            for flag, item in zip(before, value, strict=False)
        ]
    if isinstance(value, str):
        value = _URL_CREDENTIALS.sub(rf"\g<scheme>{REDACTED}@", value)
        value = _SETTING.sub(rf"\g<name>\g<between>{REDACTED}", value)
        value = KNOWN_TOKEN.sub(REDACTED, value)
        return value if key.endswith("commit") else _HEX_TOKEN.sub(REDACTED, value)
    return value
