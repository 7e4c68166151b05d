"""Python, packages and their kinds, top-level names and the compiler: what is installed against what was tested."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.doctor.finding import Finding, ProbeError, ask

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
    optional = [Requirement(line) for line in extras["deepspeed"]]
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


_SEARCH = """
import faiss, numpy
unit = numpy.eye(4, 8, dtype=numpy.float32)
index = faiss.IndexFlatIP(8)
index.add(unit)
assert index.search(unit, 1)[1].ravel().tolist() == [0, 1, 2, 3]
gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
if gpus:
    moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    assert moved.search(unit, 1)[1].ravel().tolist() == [0, 1, 2, 3]
print(gpus)
"""


def check_faiss() -> Finding:
    """One FAISS wheel, and it finds four unit vectors among themselves (on the GPU too, where it has one)."""
    wheels = sorted(set(packages_distributions().get("faiss", [])))
    if len(wheels) > 1:
        remedy = f"pip uninstall -y {' '.join(wheels)}, then install one of them"
        return Finding("faiss", "problem", f"{' and '.join(wheels)} overwrite each other (both are `faiss`)", remedy)
    if find_spec("faiss") is None:
        remedy = "pip install -c constraints.txt -e '.[faiss-cpu]'"
        return Finding("faiss", "warning", "not installed: no top-K galleries", remedy)
    kind = f"{wheels[0]} {version(wheels[0])}" if wheels else "built from source"
    try:
        gpus = int(ask(_SEARCH))
    except ProbeError as error:
        return Finding("faiss", "problem", f"{kind} does not search: {error}", "reinstall the FAISS wheel")
    return Finding("faiss", "ok", f"{kind}, searches on {f'{gpus} GPU(s)' if gpus else 'CPU'}")


def check_torchvision() -> Finding:
    """Torchvision is absent (nothing here needs it) or imports; one built for another torch breaks transformers."""
    if find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "not installed (nothing here needs it)")
    try:
        found = ask("import torchvision; print(torchvision.__version__)")
    except ProbeError as error:
        return Finding("torchvision", "problem", f"does not import: {error}", "pip uninstall -y torchvision")
    return Finding("torchvision", "ok", found)


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


def check_toolchain() -> Finding:
    """A C++ compiler, ninja on the PATH and Python's headers, as torch's extension builder looks for them."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    missing = []
    if shutil.which(compiler) is None:
        missing.append((f"C++ compiler ({compiler})", "apt install g++"))
    # Torch asks the PATH, so ninja's wheel in a virtual environment counts only while that environment is active.
    if not _ninja_runs():
        missing.append(("ninja on the PATH", "activate the environment and pip install ninja"))
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append(("Python.h", "apt install python3-dev"))
    if missing:
        lacks = "lacks " + ", ".join(what for what, _ in missing)
        if find_spec("deepspeed") is None:
            return Finding("toolchain", "ok", f"{lacks} (DeepSpeed, which alone needs it, is not installed)")
        return Finding("toolchain", "warning", f"{lacks}: no DeepSpeed", "; ".join(remedy for _, remedy in missing))
    cache = os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")
    return Finding("toolchain", "ok", f"{shutil.which(compiler)}, ninja, Python headers; extensions cached in {cache}")


def _ninja_runs() -> bool:
    try:
        return subprocess.run(["ninja", "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
