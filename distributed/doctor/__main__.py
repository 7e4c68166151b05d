"""Say what this machine has and lacks for allpairs.

    python -m distributed.doctor [--json] [--config configs/NAME.yaml [section.key=value ...]]

Exit code 1 when there is a problem; warnings (optional things, likely trouble) leave it at 0.
"""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from distributed.doctor.examination import checks, examine
from distributed.doctor.finding import Finding
from distributed.doctor.packages import INSTALL

try:
    from cyclopts import App, Parameter
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from allpairs.command import run
    from allpairs.errors import UserError
except ImportError as error:  # the one command that has to speak in a bare environment
    sys.exit(f"error: {error}\nremedy: {INSTALL}")

COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}

app = App(name="python -m distributed.doctor", help="What this machine has and lacks for allpairs.")


@app.default
def doctor(
    *overrides: str, config: Annotated[Path | None, Parameter(name="--config")] = None, json: bool = False
) -> int:
    """Check versions, GPU, FAISS, compiler, Ray, W&B, names and room; exit code 1 when there is a problem.

    Parameters
    ----------
    overrides
        `section.key=value` over the file.
    config
        YAML file of a run: whether the cluster has what it asks for, and every node its folders.
    json
        Print the findings as JSON instead of a table.
    """
    if overrides and config is None:
        raise UserError(f"{overrides[0]}: a key is set over a configuration; give it with --config")
    if config is None:
        findings = examine(checks())
    else:
        from distributed.config import load

        findings = examine(checks(load(config, overrides)))
    if json:
        print(_as_json(findings))
    else:
        _show(findings)
    return int(any(finding.status == "problem" for finding in findings))


def _as_json(findings: list[Finding]) -> str:
    ok = all(finding.status != "problem" for finding in findings)
    return json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=2, ensure_ascii=False)


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        text = finding.found + (f"\n→ {finding.remedy}" if finding.remedy else "")
        table.add_row(finding.check, f"[{COLOURS[finding.status]}]{finding.status}[/]", escape(text))
    console = Console()
    console.print(table)
    count = Counter(finding.status for finding in findings)
    console.print(f"\n{count['problem']} problems, {count['warning']} warnings, {count['ok']} ok")


if __name__ == "__main__":
    run(app)
