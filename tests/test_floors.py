"""The house stands on its floors: no import runs upwards, no circles, heavy packages only where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ["allpairs", "retrieval_eval", "distributed", "tune"]
HEAVY = {"ray", "faiss", "wandb", "deepspeed", "transformers", "matplotlib"}
# These extend classes of Ray's, so they need Ray to be read at all; themselves imported late.
SUBCLASSES = {"tune/progress.py", "tune/early_stop.py", "distributed/supervision.py", "distributed/scaling.py"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Names of the modules that `path` imports; those under `if TYPE_CHECKING:` cost nothing and are left out."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                found.add(node.module or "")
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
                for field in ("body", "orelse", "finalbody"):
                    visit([child for child in getattr(node, field, []) if isinstance(child, ast.stmt)])
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_floors_have_files():
    assert all(len(sources(floor)) > 3 for floor in FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_no_import_runs_upwards(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :]) | {"tests", "benchmarks"}
    upwards = {(str(path), name) for path in sources(floor) for name in imports(path) if name.split(".")[0] in above}
    assert not upwards


def test_the_library_knows_nothing_of_ray_faiss_or_wandb():
    banned = {"ray", "faiss", "wandb", "webdataset", "pydantic", "deepspeed"}
    found = {
        (str(path), name) for path in sources("allpairs") for name in imports(path) if name.split(".")[0] in banned
    }
    assert not found


@pytest.mark.parametrize("floor", FLOORS)
def test_heavy_packages_are_imported_where_they_are_used(floor):
    found = {
        (str(path), name)
        for path in sources(floor)
        for name in imports(path, top_level_only=True)
        if name.split(".")[0] in HEAVY and str(path.relative_to(ROOT)) not in SUBCLASSES
    }
    assert not found


@pytest.mark.parametrize("floor", FLOORS)
def test_no_circles(floor):
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sources(floor)
    }
    edges = {
        name: {other for other in imports(path) if other in modules and other != name} for name, path in modules.items()
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in edges[name]:
                # A package's own modules may import each other through it only downwards.
                walk(other, (*trail, name))
            done.add(name)

    for name in modules:
        walk(name, ())


def test_objectives_need_only_torch():
    script = (
        "import sys, allpairs.objectives, allpairs.engine\n"
        f"print(sorted({HEAVY | {'pydantic', 'safetensors', 'PIL', 'yaml'}!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def packages() -> list[Path]:
    return sorted(
        {path.parent for floor in FLOORS for path in sources(floor) if (path.parent / "__init__.py").exists()}
    )


@pytest.mark.parametrize("package", packages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_has_a_table_of_contents(package):
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    inside = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert {name for name in inside if not name.startswith("__") and f"`{name}`" not in text} == set()
