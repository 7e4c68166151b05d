"""What tests share: the real pairs (or a stranger's stand-in), and a record of whether the real ones were used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _shared() -> Path | None:
    """The folder that ALLPAIRS_SHARED names; naming one that lacks the data is an error, never a silent stand-in."""
    named = os.environ.get("ALLPAIRS_SHARED")
    if not named:
        return None
    assert (Path(named) / "data/emoji/dataset.json").is_file(), f"ALLPAIRS_SHARED={named} holds no data/emoji"
    return Path(named).resolve()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train, val and test: the real emoji where ALLPAIRS_SHARED names them, else the built-in scenes."""
    out = tmp_path_factory.mktemp("data") / "pairs"
    shared = _shared()
    if shared is None:
        source = ["scenes"]
    else:
        source = ["karpathy", str(shared / "data/emoji/dataset.json"), "--images", str(shared / "data/emoji/images")]
    command = [sys.executable, "-m", "distributed.data", "build", *source, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return out


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the tests that ran on real data."""
    if report.when == "call" and report.passed and "realdata" in report.keywords and _shared() is not None:
        _REAL.append(report.nodeid)


_REAL: list[str] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the names where the continuous integration can check that there are some."""
    if _REAL and session.config.cache is not None:
        session.config.cache.set("allpairs/real-data", sorted(_REAL))
