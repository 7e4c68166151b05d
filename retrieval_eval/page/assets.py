"""Templates, style and scripts, and the policy that lets a page run these scripts and nothing else."""

import base64
import hashlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none';"
    " form-action 'none'"
)


def render(template: str, scripts: tuple[str, ...], **values: Any) -> str:
    """Fill a template: all values are escaped but the house's own style, `scripts` and what passes as Markup."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["markup"] = Markup
    theme = _read("theme.js")
    body = "".join(_read(name) for name in scripts)
    return environment.get_template(template).render(
        policy=POLICY.format(scripts=" ".join(_hash(script) for script in (theme, body))),
        style=_read("style.css"),
        theme=theme,
        script=body,
        **values,
    )


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
