"""The Dockerfile copies what exists, installs what is declared, and leaves root before it installs."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from distributed.doctor.packages import read_pins
from distributed.provenance import COMMIT_FILE

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def copied() -> list[str]:
    sources = []
    for word, rest in instructions():
        if word == "COPY":
            sources += [part for part in rest.split() if not part.startswith("--")][:-1]
    return sources


def test_everything_copied_exists_and_reaches_the_build() -> None:
    allowed = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source


def test_every_package_of_the_service_is_copied() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= set(copied())


def test_dependencies_are_installed_before_the_code_and_as_pinned() -> None:
    steps = instructions()
    install = next(i for i, (word, rest) in enumerate(steps) if word == "RUN" and "pip install" in rest)
    code = next(i for i, (word, rest) in enumerate(steps) if word == "COPY" and "distributed" in rest.split())
    assert install < code
    assert "--constraint constraints.txt" in steps[install][1]


def test_the_image_knows_its_commit() -> None:
    steps = instructions()
    assert ("RUN", f'echo "${{COMMIT}}" > {COMMIT_FILE}') in steps[steps.index(("ARG", "COMMIT=")) :]
    assert ("WORKDIR", "/app") in steps  # beside the packages, where provenance looks


def test_extras_are_declared_and_their_packages_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    found = re.search(r'"\.\[([^]]+)]"', TEXT)
    assert found is not None
    pins = read_pins((ROOT / "constraints.txt").read_text())
    for extra in found[1].replace("${FAISS}", arguments["FAISS"]).split(","):
        for requirement in map(Requirement, extras[extra]):
            if requirement.name != "allpairs":
                assert requirement.name.lower() in pins, requirement.name
    for extra in re.findall(r"FAISS=([\w-]+)", TEXT):
        assert extra in extras


def test_image_runs_as_its_own_user_from_the_copied_code() -> None:
    steps = instructions()
    assert steps[-1] == ("CMD", '["python", "-m", "distributed.doctor"]')
    user = steps.index(("USER", "ray"))
    assert all(i > user for i, (word, _) in enumerate(steps) if word == "COPY")
    assert "PYTHONPATH=/app" in dict(steps)["ENV"]
