"""Top-level names: the service runs from the checkout, where another package of the same name can stand in its way."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from distributed.doctor.finding import Finding
from distributed.doctor.versions import CHECKOUT

NAMES = ("allpairs", "retrieval_eval", "distributed", "tune", "deploy")


def check_names() -> list[Finding]:
    """Every package of the project is the checkout's; one row for each that has a rival on the import path."""
    rows = []
    for name in NAMES:
        places = _places(name)
        ours = CHECKOUT / name
        rivals = [place for place in places if place != ours]
        if not rivals:
            continue
        found = f"also at {', '.join(map(str, rivals))}"
        remedy = f"remove it from the import path, or run from {CHECKOUT}"
        first = places[0] == ours
        rows.append(Finding(f"name {name}", "warning" if first else "problem", found, remedy))
    if not rows:
        return [Finding("names", "ok", f"{', '.join(NAMES)} come from {CHECKOUT}")]
    return rows


def _places(name: str) -> list[Path]:
    """Folders (or files) where the import system would find `name`, in its order, one entry of the path at a time."""
    found: list[Path] = []
    for entry in sys.path:
        spec = PathFinder.find_spec(name, [entry or str(Path.cwd())])
        if spec is None or spec.origin is None:
            continue  # a folder without __init__.py never wins over a package
        origin = Path(spec.origin).resolve()
        place = origin.parent if origin.name == "__init__.py" else origin
        if place not in found:
            found.append(place)
    return found
