"""Python and package versions, against what pyproject.toml asks for and what constraints.txt says was tested."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.doctor.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parents[2]
PINS = CHECKOUT / "constraints.txt"
INSTALL = "pip install -c constraints.txt -e '.[service,faiss-cpu]'"

# Named first in the summary, because their versions decide most questions.
PRINCIPAL = ("torch", "ray", "webdataset", "deepspeed", "wandb", "transformers", "numpy")


def check_python() -> Finding:
    """Python is one the project accepts."""
    from packaging.specifiers import SpecifierSet

    number = ".".join(map(str, sys.version_info[:3]))
    found = f"{number} at {sys.executable}"
    accepted = _project()["requires-python"]
    if not SpecifierSet(accepted).contains(number):
        return Finding("python", "problem", f"{found}, the project asks for {accepted}", f"use Python {accepted}")
    return Finding("python", "ok", found)


def read_pins(text: str) -> dict[str, str]:
    """Map each ``name==version`` line of a constraints file to its version; names as pip compares them."""
    pins = {}
    for line in text.splitlines():
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*==\s*([^\s;#]+)", line)
        if match:
            pins[_canonical(match[1])] = match[2]
    return pins


def _service(project: dict[str, Any]) -> list[str]:
    """Return what the extra `service` asks for, the project's own extras that it names resolved."""
    from packaging.requirements import Requirement

    asked = [*project["dependencies"]]
    for line in project["optional-dependencies"]["service"]:
        requirement = Requirement(line)
        own = _canonical(requirement.name) == _canonical(project["name"])
        asked += (
            [part for extra in requirement.extras for part in project["optional-dependencies"][extra]]
            if own
            else [line]
        )
    return asked


def check_packages() -> list[Finding]:
    """Every package the service needs is there, in the asked range: one row for all, one more for each that is off."""
    from packaging.requirements import Requirement

    project = _project()
    extras = project["optional-dependencies"]
    required = [Requirement(line) for line in _service(project)]
    optional = [Requirement(line) for line in [*extras["deepspeed"], *extras["timm"]]]
    pins = read_pins(PINS.read_text()) if PINS.exists() else {}

    installed: dict[str, str] = {}
    off: list[Finding] = []
    for requirement in required + optional:
        name = _canonical(requirement.name)
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            if requirement in required:
                off.append(Finding(name, "problem", "not installed", INSTALL))
            continue
        off += _judge(name, installed[name], requirement, pins.get(name))
    leading = ", ".join(f"{name} {installed[name]}" for name in PRINCIPAL if name in installed)
    good = len(installed) - sum(finding.found != "not installed" for finding in off)
    words = "as tested" if pins else "in the asked ranges (no constraints.txt here)"
    summary = Finding("packages", "ok", f"{good} of {len(installed)} {words}: {leading}")
    return [summary, *off]


def _judge(name: str, found: str, requirement: "Requirement", pin: str | None) -> list[Finding]:
    if not requirement.specifier.contains(found, prereleases=True):
        return [Finding(name, "problem", f"{found}, the project asks for {requirement.specifier}", INSTALL)]
    # 2.13.0+cpu is 2.13.0 built for another machine: the local part is not a difference in version.
    if pin is not None and found.partition("+")[0] != pin.partition("+")[0]:
        return [Finding(name, "warning", f"{found}, tested with {pin}", f"pip install {name}=={pin}")]
    return []


def _project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
