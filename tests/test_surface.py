"""What users write down stays: configuration keys, keys of a search, commands and their flags.

`python -m pytest tests/test_surface.py --renew` writes `surface.txt` after a change that is meant; say so in
docs/log.md.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from cyclopts import App

from distributed.config.keys import known_keys
from tune.config import Search

SURFACE = Path(__file__).with_name("surface.txt")
COMMANDS = {
    "allpairs.analysis": "allpairs.analysis.__main__",
    "deploy.submit": "deploy.submit",
    "distributed.data": "distributed.data.__main__",
    "distributed.doctor": "distributed.doctor.__main__",
    "distributed.embed": "distributed.embed",
    "distributed.tracking": "distributed.tracking.__main__",
    "distributed.train": "distributed.train",
    "retrieval_eval.compare": "retrieval_eval.compare",
    "retrieval_eval.evaluate": "retrieval_eval.evaluate.__main__",
    "tune.search": "tune.search",
}


def flags(app: App, command: str) -> Iterator[str]:
    """Yield a line per flag of `command` and its subcommands; ``--no-`` forms follow their flags and are left out."""
    if app.default_command is not None:
        yield command
        for argument in app.assemble_argument_collection():
            names = [name for name in argument.names if name != "*" and not name.startswith("--no-")]
            if names:
                yield f"{command} {' '.join(sorted(names))}"
    for name in app:
        if not name.startswith("-"):
            yield from flags(app[name], f"{command} {name}")


def surface() -> str:
    """Return the surface, a name per line."""
    lines = [f"config {key}" for key in known_keys()]
    lines += [f"search {key}" for key in Search.model_fields]
    for command, module in COMMANDS.items():
        found = import_module(module)
        app = found.app if hasattr(found, "app") else found.make_app()
        lines += flags(app, f"python -m {command}")
    return "".join(f"{line}\n" for line in sorted(lines))


def test_keys_and_flags_are_frozen(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--renew"):
        SURFACE.write_text(surface(), encoding="utf-8")
    assert surface().splitlines() == SURFACE.read_text(encoding="utf-8").splitlines()
