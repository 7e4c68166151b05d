"""The one command for the day a GPU is there runs on this machine at small sizes, with torch and Triton alone."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.bench import SMALL, Bench
from benchmarks.gpu.record import Record

ROOT = Path(__file__).parents[2]

BARE = """
import importlib.metadata, runpy, sys
bare = {"allpairs", "torch", "functorch", "torchgen", "triton", "numpy"}
needed = {"sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "typing_extensions"}
for name in ["distributed", "tune", "deploy", *importlib.metadata.packages_distributions()]:
    if name not in bare | needed | {"setuptools", "pkg_resources", "_distutils_hack"} and not name.startswith("_"):
        sys.modules[name] = None  # importing it raises, looking for it finds nothing
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def test_every_section_runs_on_a_bare_machine_and_a_failing_peer_loses_its_row_alone(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "inf_cl-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("inf_cl.py", "def cal_flash_loss(*_, **__):\n    raise ValueError('no\\nkernel image')")
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", BARE, "--out", str(out), "--peers", str(wheels)]
    arguments += ["--device", "cpu", "--size", "small"]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    lost = {row["name"]: row["lost"] for row in rows if "lost" in row}
    assert lost == {"Inf-CL": "kernel image"}
    skipped = {row["name"]: row["skipped"] for row in rows if "skipped" in row}
    assert skipped["profile"] == skipped["all variants"] == "there is no GPU"
    assert skipped["siglip-kernel, fastest"] == "siglip_kernel is not installed, nor a wheel of it in --peers"
    errors = {row["name"]: row for row in rows if row["section"].startswith("parity")}
    assert len(errors) == 3
    assert all(row["value"] < 1e-6 and row["queries"] < 2**-8 for row in errors.values())
    timed = [row for row in rows if "ms" in row and "lowest" in row]
    assert len(timed) >= 20
    assert all(0 < row["lowest"] <= row["ms"] <= row["highest"] for row in timed)
    table = (out / "table.md").read_text()
    assert "| 600 pairs, normalize=True |" in table
    assert table.count("###") == len({row["section"] for row in rows})


def test_what_would_pass_the_deadline_is_skipped_and_named(tmp_path):
    bench = Bench(Record(tmp_path), SMALL, "cpu", minutes=0.5, peers=None)
    assert bench.row("a section", "short", 1, lambda: {"ms": 2.5}) == {"ms": 2.5}
    assert bench.row("a section", "long", 3000, lambda: pytest.fail("begun")) is None
    assert bench.row("a section", "broken", 1, lambda: {"ms": 1 / 0}) is None
    kept = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert kept[1]["skipped"].startswith("would take about 3000 s, ")
    assert kept[2]["lost"] == "ZeroDivisionError: division by zero"
    assert bench.record.table().read_text().splitlines()[2:5:2] == ["| name | ms |", "| short | 2.5 |"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu", "--peers", "none"], "gpu: --peers none: a folder of wheels is accepted"),
        ([], "gpu: no CUDA GPU is visible to torch; accepted here: --device cpu --size small, to see that all runs"),
    ],
)
def test_no_gpu_and_no_folder_are_said_in_a_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--out", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [said]
